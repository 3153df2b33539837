"""Lays rows of interventions into passes: sequences of equal length, joining layer by layer."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

TRIED = 12  # widths that are filled in search of the best


@dataclass(frozen=True)
class Segment:
    """What one row has to run: positions start … stop-1, from block `boundary` on."""

    row: int
    boundary: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(eq=False)
class Packing:
    """One pass over the blocks. `bins` are sequences of `width` tokens, in order of boundary; each
    holds whole segments of one boundary, and is run once per prompt."""

    width: int
    bins: list[list[Segment]]

    @staticmethod
    def of(segments: list[Segment], n_pos: int) -> "Packing":
        """First-fit decreasing, at the width that wastes least (of equals the widest)."""
        tokens: Counter[int] = Counter()
        for segment in segments:
            tokens[segment.boundary] += len(segment)

        def least(width: int) -> int:
            """Tokens with the waste that no filling avoids: a boundary's last, half-empty bin."""
            return sum(width * -(-total // width) for total in tokens.values())

        widths = sorted(range(max(map(len, segments)), n_pos + 1), key=lambda w: (least(w), -w))
        best = Packing(widths[0], _fill(segments, widths[0]))
        for width in widths[1:TRIED]:
            if least(width) >= best.tokens:
                break
            option = Packing(width, _fill(segments, width))
            best = min(best, option, key=lambda packing: packing.tokens)
        return best

    @property
    def tokens(self) -> int:
        """Tokens that a pass computes for each prompt, padding included."""
        return len(self.bins) * self.width

    @cached_property
    def segments(self) -> list[Segment]:
        return [segment for one in self.bins for segment in one]

    @cached_property
    def prefix(self) -> int:
        """The number of recorded positions that some segment attends to."""
        return max(segment.start for segment in self.segments)

    @cached_property
    def first_layer(self) -> int:
        return self.bins[0][0].boundary

    def joined(self, layer: int) -> int:
        """The number of sequences that have joined when block `layer` is entered."""
        return sum(one[0].boundary <= layer for one in self.bins)

    @cached_property
    def places(self) -> dict[int, tuple[int, int, Segment]]:
        """For each row: its sequence, the offset there of its first token, and its segment."""
        found = {}
        for number, one in enumerate(self.bins):
            offset = 0
            for segment in one:
                found[segment.row] = number, offset, segment
                offset += len(segment)
        return found

    def layout(self, device: torch.device) -> Int[Tensor, "three bin width"]:
        """Position, start of the segment, and row of every token; padding has row -1."""
        layout = torch.zeros(3, len(self.bins), self.width, dtype=torch.long)
        layout[2] = -1
        for row, (number, offset, segment) in self.places.items():
            where = slice(offset, offset + len(segment))
            layout[0, number, where] = torch.arange(segment.start, segment.stop)
            layout[1, number, where] = segment.start
            layout[2, number, where] = row
        return layout.to(device)


def _fill(segments: list[Segment], width: int) -> list[list[Segment]]:
    bins: list[list[Segment]] = []
    room: list[int] = []
    open_from, boundary = 0, -1
    for segment in sorted(segments, key=lambda s: (s.boundary, -len(s), s.row)):
        if segment.boundary != boundary:  # earlier sequences are closed: they join earlier
            open_from, boundary = len(bins), segment.boundary
        fits = (i for i in range(open_from, len(bins)) if room[i] >= len(segment))
        number = next(fits, len(bins))
        if number == len(bins):
            bins.append([])
            room.append(width)
        bins[number].append(segment)
        room[number] -= len(segment)
        if number == open_from and room[number] == 0:
            open_from += 1  # full: never look at it again
    return bins


def plan(segments: list[Segment], n_prompts: int, n_pos: int, max_tokens: int) -> Iterator[Packing]:
    """Passes of at most `max_tokens` tokens each (at least one segment), by boundary, so that
    each begins as late as it can."""
    chunk: list[Segment] = []
    tokens = 0
    for segment in sorted(segments, key=lambda s: (s.boundary, -len(s), s.row)):
        if chunk and tokens + n_prompts * len(segment) > max_tokens:
            yield Packing.of(chunk, n_pos)
            chunk, tokens = [], 0
        chunk.append(segment)
        tokens += n_prompts * len(segment)
    if chunk:
        yield Packing.of(chunk, n_pos)
