"""Turns of a conversation in their order, what is answered of them, and what asking would cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from derm_rl.captions.ledger import Ledger, key
from derm_rl.captions.schema import Reply, Request, Teacher

Done = Sequence[tuple[Request, Reply]]  # the turns so far
Turn = Request | Callable[[Done], Request | None]
Conversation = Request | Sequence[Turn]  # one request, or turns in their order


def turns_of(conversation: Conversation) -> Sequence[Turn]:
    return [conversation] if isinstance(conversation, Request) else conversation


def next_request(turns: Sequence[Turn], done: Done) -> Request | None:
    """The next request of a conversation, or None if it is over.

    A turn is a request, or a function that makes it from the turns so far (None ends the
    conversation). A request without history is given that of the turns so far. A turn without an
    answer ends the conversation: what follows builds on it.
    """
    if len(done) == len(turns) or (done and done[-1][1].answer is None):
        return None
    turn = turns[len(done)]
    request = turn(done) if callable(turn) else turn
    if request is not None and done and not request.prompt.history:
        history = tuple((r.question.text, reply.answer.answer) for r, reply in done)
        request = replace(request, prompt=replace(request.prompt, history=history))
    return request


def replay(
    teacher: Teacher, requests: Iterable[Conversation], ledger: Ledger
) -> Iterator[tuple[Request, str, Reply | None]]:
    """Every request with its key and the ledger's reply, in the order given; nothing is asked.

    The reply is None for the first turn of a conversation that has none. Whatever order answers
    came in, and however often a run was killed, this gives the same.
    """
    for conversation in requests:
        turns, done = turns_of(conversation), []
        while (request := next_request(turns, done)) is not None:
            name = key(request, teacher)
            reply = ledger.get(name)
            yield request, name, reply
            if reply is None:
                break
            done.append((request, reply))


# -------------------------------------------------------------------------------- estimates


@dataclass(frozen=True)
class Estimate:
    """What asking would take; cost in US dollars, None if no price is known."""

    requests: int
    answered: int  # of these, in the ledger already: not in the numbers below
    input_tokens: int
    output_tokens: int
    cost: float | None

    def __str__(self) -> str:
        cost = "price unknown" if self.cost is None else f"about ${self.cost:.2f}"
        return (
            f"{self.requests - self.answered} requests to ask ({self.answered} answered already), "
            f"about {self.input_tokens} + {self.output_tokens} tokens, {cost}"
        )


def estimate(
    requests: Iterable[Conversation],
    price: tuple[float, float] | None,
    *,
    output_tokens: int = 250,
    image_tokens: int | None = None,
    teacher: Teacher | None = None,
    ledger: Ledger | None = None,
) -> Estimate:
    """Requests, tokens and cost of a run, without asking anything.

    Args:
        price: US dollars per million input and output tokens.
        output_tokens: of one answer.
        image_tokens: of one image; None counts OpenAI's tiles (:func:`tile_tokens`).
        teacher, ledger: give both to leave out what is answered.

    A turn that depends on answers not there yet is taken to be as long as the turn before it plus
    one answer; retries and repairs are not foreseen.
    """
    count = answered = tokens_in = tokens_out = 0
    for conversation in requests:
        turns = turns_of(conversation)
        known = _answered(turns, teacher, ledger)
        count, answered = count + len(turns), answered + known
        size = 0
        for number, turn in enumerate(turns):
            if isinstance(turn, Request):
                images = tile_tokens(turn.image) if image_tokens is None else image_tokens
                size = text_tokens(turn.prompt.system + turn.prompt.user) + images
                history = sum(text_tokens(q + a) for q, a in turn.prompt.history)
                size += history if history or not number else number * output_tokens
            else:
                size += output_tokens
            if number >= known:
                tokens_in, tokens_out = tokens_in + size, tokens_out + output_tokens
    cost = None if price is None else (tokens_in * price[0] + tokens_out * price[1]) / 1e6
    return Estimate(count, answered, tokens_in, tokens_out, cost)


def _answered(turns: Sequence[Turn], teacher: Teacher | None, ledger: Ledger | None) -> int:
    if teacher is None or ledger is None:
        return 0
    replies = [reply for _, _, reply in replay(teacher, [turns], ledger)]
    return sum(reply is not None and reply.status != "failed" for reply in replies)


def text_tokens(text: str) -> int:
    """Tokens of a text, roughly: four ASCII characters a token, one of any other script."""
    wide = sum(not c.isascii() for c in text)
    return wide + math.ceil((len(text) - wide) / 4)


def tile_tokens(image: bytes) -> int:
    """Tokens of an encoded image by the rule of OpenAI's GPT-4o.

    The image is made to fit into 2048 px, then its shorter side into 768 px; 85 tokens, and 170
    for each tile of 512 px (https://platform.openai.com/docs/guides/images-vision).
    """
    from derm_rl.data.images import opened

    with opened(image) as header:
        width, height = header.size
    scale = min(1, 2048 / max(width, height))
    scale *= min(1, 768 / (min(width, height) * scale))
    return 85 + 170 * math.ceil(width * scale / 512) * math.ceil(height * scale / 512)
