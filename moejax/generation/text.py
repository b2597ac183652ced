"""Continuing texts: prompts in, pieces of text out while they come, stop strings looked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from moejax.generation.generate import GenerationConfig, Generator, Reason
from moejax.interop.tokenizer import TextStream, Tokenizer


@dataclass(frozen=True)
class Completion:
    """A prompt, its continuation without the stop string, the tokens made, and why it ended."""

    prompt: str
    text: str
    tokens: list[int]
    finished: Reason


class TextRun:
    """Texts that are being continued.

    The tokenizer's end tokens stop a row, as do the config's stop tokens and the stop strings.
    ValueError for an empty prompt or stop string.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        config: GenerationConfig,
        stop: Sequence[str] = (),
    ):
        self.prompts = list(prompts)
        self._streams = [TextStream(tokenizer, stop) for _ in self.prompts]
        self._tokens: list[list[int]] = [[] for _ in self.prompts]
        ids = [tokenizer.encode(prompt) for prompt in self.prompts]
        self.num_prompt_tokens = sum(map(len, ids))
        ends = tuple(one for one in tokenizer.eos_ids if one < generator.config.vocab_size)
        ends = tuple(dict.fromkeys((*config.stop_tokens, *ends)))
        self._run = generator.start(ids, replace(config, stop_tokens=ends))

    @property
    def num_new_tokens(self) -> int:
        """Of all rows so far."""
        return sum(map(len, self._tokens))

    def wait(self) -> None:
        """Until the prompts have been read."""
        self._run.wait()

    def pieces(self, steps: int = 1) -> Iterator[list[str]]:
        """New text of each row after at most `steps` tokens, until all have ended."""
        while not self._run.done:
            yield [self._push(row, tokens) for row, tokens in enumerate(self._run.advance(steps))]
            self._run.stop([stream.stopped for stream in self._streams])
        yield [stream.finish() for stream in self._streams]

    def results(self) -> list[Completion]:
        """All rows so far."""
        reasons = self._run.result().finished
        return [
            Completion(prompt, stream.text, tokens, "stop" if stream.stopped else reason)
            for prompt, stream, tokens, reason in zip(
                self.prompts, self._streams, self._tokens, reasons, strict=True
            )
        ]

    def _push(self, row: int, tokens: list[int]) -> str:
        """One token at a time: those behind a stop string are none of the row's."""
        new = ""
        for token in tokens:
            if self._streams[row].stopped:
                break
            self._tokens[row].append(token)
            new += self._streams[row].push([token])
        return new
