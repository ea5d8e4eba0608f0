"""InfiniteVL, whole: frames and text into a streaming state, text out of it (arXiv 2512.08829)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.cache import PagedCache, SequenceCache, SlotCache
from model.config import ConfigError, DecoderConfig, InfiniteVLConfig, parse_config
from model.families.family import FAMILIES, Family
from model.families.tools import Round, Tool, ToolFormat
from model.families.vocabulary import Vocabulary
from model.layers.decoder import Decoder
from model.layers.mixer import Mixer
from model.layers.vision import MLP, VisionTower
from model.ops.rope import frame_positions
from model.state import StreamState


class InfiniteVL(nn.Module):
    """The vision tower and the decoder, over streams in slots (`see`, `read`) or whole differentiable sequences (`watch`, `answer`)."""

    def __init__(self, config: InfiniteVLConfig) -> None:
        super().__init__()
        self.config = config
        self.visual: Any = FAMILIES[config.family].tower(config.vision)
        self.model = Decoder(config.decoder)
        self.lm_head: Any = None
        if not config.decoder.tie_word_embeddings:
            self.lm_head = nn.Linear(config.decoder.hidden_size, config.decoder.vocab_size, bias=False)
        self.output: nn.Module | None = None
        """The map to logits, where it has been put into numbers of its own: [rows, 1, hidden] to [rows, 1, vocabulary]."""

    def fuse(self) -> None:
        """Joins projections for inference; call it last, after the weights are where they stay."""
        for module in self.modules():
            if isinstance(module, MLP | Mixer):
                module.fuse()

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden] to float32 [..., vocabulary]."""
        if self.output is not None:
            rows: Tensor = self.output(hidden.reshape(-1, 1, hidden.shape[-1]))
            return rows.view(*hidden.shape[:-1], -1)
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        return F.linear(hidden, head.weight).float()

    def advance(
        self,
        x: Tensor,
        positions: Tensor,
        state: StreamState,
        slots: Tensor,
        counts: Tensor | None = None,
        outputs: bool = True,
    ) -> Tensor | None:
        """Takes embeddings `x` [batch, n, hidden] at `positions` [3, batch, n] into `slots` (int64 [batch], distinct).

        n is at most `config.step_tokens`, save where attention retrieves; longer inputs go in pieces. Returns the last hidden
        states, or None without `outputs`.
        """
        cache = (SlotCache if state.pages is None else PagedCache)(state, slots, positions, counts)
        hidden: Tensor | None = self.model(x, positions, cache, outputs)
        cache.commit()
        return hidden

    def open(self, state: StreamState, slots: Tensor, opening: Sequence[int] | None = None) -> None:
        """Begins a stream in each of `slots`: reads its opening (`<|vision_start|>`) and puts the frames' grid after it."""
        tokens = torch.tensor([opening or [self.config.vision_start_token_id]], device=slots.device)
        x = self.model.embed_tokens(tokens.expand(len(slots), -1))
        self.advance(x, state.text_positions(slots, x.shape[1]), state, slots, outputs=False)
        state.begin(slots)

    def see(
        self,
        patches: Tensor,
        grid: tuple[int, int],
        seconds: Tensor,
        state: StreamState,
        slots: Tensor,
        text: Tensor | None = None,
    ) -> None:
        """One frame step: `patches` [batch, grid patches, patch_dim] at `seconds` (float64 [batch]) of stream time.

        `grid` is (height, width) in patches. Source of the convention: see `StreamState.frame_positions`. `text`: see `ingest`.
        """
        self.ingest(self.encode(patches, grid), grid, seconds, state, slots, text)

    def encode(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """What the vision tower makes of `patches` [batch, grid patches, patch_dim]: [batch, tokens, hidden]."""
        return self.visual(patches, *grid)  # type: ignore[no-any-return]

    def ingest(
        self,
        x: Tensor,
        grid: tuple[int, int],
        seconds: Tensor,
        state: StreamState,
        slots: Tensor,
        text: Tensor | None = None,
    ) -> None:
        """`see` from what the vision tower made of the patches, [batch, tokens, hidden].

        Where positions are counted, `text` (int64 [batch, 2 + rows]) is what stands around the grid: how many tokens before
        it, how many in all, then these, padded. A step then has `rows` more tokens than its grid, whatever its text.
        """
        merge = self.config.vision.spatial_merge_size
        height, width = grid[0] // merge, grid[1] // merge
        if text is None:
            self.advance(x, state.frame_positions(slots, seconds, height, width), state, slots, outputs=False)
            return
        lead, counts, words = text[:, 0], text[:, 1], text[:, 2:]
        rows, tokens = words.shape[1], x.shape[1]
        inside = torch.arange(rows + tokens, device=x.device) - lead[:, None]
        place = torch.where(inside < 0, inside + lead[:, None], inside + rows)
        place = torch.where(inside >= tokens, (inside + lead[:, None] - tokens).clamp(max=rows - 1), place)
        source = torch.cat((self.model.embed_tokens(words).to(x.dtype), x), 1)
        whole = source.gather(1, place[..., None].expand(-1, -1, x.shape[-1]))
        positions = state.step_positions(slots, lead, counts, rows, height, width)
        self.advance(whole, positions, state, slots, counts + tokens, outputs=False)

    def ingest_steps(self, x: Tensor, grid: tuple[int, int], seconds: Tensor, state: StreamState, slot: Tensor) -> None:
        """As `ingest` without text, of several steps of one slot (int64 [1]), one after the other, where attention retrieves.

        `x` [steps, tokens, hidden], `seconds` float64 [steps].
        """
        merge = self.config.vision.spatial_merge_size
        size = grid[0] // merge, grid[1] // merge
        positions = torch.cat([state.frame_positions(slot, moment, *size) for moment in seconds.split(1)], -1)
        self.advance(x.flatten(0, 1)[None], positions, state, slot, outputs=False)

    def read(self, tokens: Tensor, state: StreamState, slots: Tensor, counts: Tensor | None = None) -> Tensor:
        """Text tokens int64 [batch, n] (with `counts`, padded on the right); returns float32 [batch, vocabulary] after the last."""
        step = self.config.step_tokens
        hidden = None
        last = None
        for start in range(0, tokens.shape[1], step):
            part = tokens[:, start : start + step]
            n = part.shape[1]
            taken = None if counts is None else (counts - start).clamp(0, n)
            positions = state.text_positions(slots, n, taken)
            hidden = self.advance(self.model.embed_tokens(part), positions, state, slots, taken)
            assert hidden is not None
            if taken is None:
                last = hidden[:, -1]
            else:
                final = hidden[torch.arange(len(slots), device=slots.device), (taken - 1).clamp(min=0)]
                last = final if last is None else torch.where((taken > 0)[:, None], final, last)
        assert last is not None
        return self.logits(last)

    def watch(
        self, patches: Tensor, grid: tuple[int, int], seconds: Tensor, cache: SequenceCache | None = None
    ) -> SequenceCache:
        """Whole streams at once, differentiable: `patches` [batch, steps, grid patches, patch_dim] at `seconds` float64 [batch, steps].

        Continues `cache` where one is given. Times must stay within the position horizon.
        """
        x = self.visual(patches.flatten(0, 1), *grid).unflatten(0, patches.shape[:2])
        return self.forward(x, grid, seconds, cache)

    def forward(
        self, x: Tensor, grid: tuple[int, int], seconds: Tensor, cache: SequenceCache | None = None
    ) -> SequenceCache:
        """`watch` from what the vision tower made of the patches, [batch, steps, tokens, hidden]."""
        batch, steps = x.shape[:2]
        merge = self.config.vision.spatial_merge_size
        height, width = grid[0] // merge, grid[1] // merge
        time = self.config.tokens_per_second * seconds.floor().to(torch.int64)
        base = torch.ones(batch * steps, dtype=torch.int64, device=x.device)
        positions = frame_positions(base, time.flatten(), height, width).view(3, batch, -1)
        x = x.flatten(1, 2)
        if cache is None:
            cache = SequenceCache(self.config.decoder, self.config.policy, batch, x.device, x.dtype)
            start = torch.full((batch, 1), self.config.vision_start_token_id, device=x.device)
            x = torch.cat((self.model.embed_tokens(start).to(x.dtype), x), 1)
            positions = torch.cat((positions.new_zeros(3, batch, 1), positions), -1)
        self.model(x, positions, cache, False)
        cache.advance(x.shape[1])
        return cache

    def answer(
        self,
        tokens: Tensor,
        last: Tensor,
        grid: tuple[int, int],
        cache: SequenceCache,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Logits of questions that branch from `cache`: `tokens` int64 [batch, questions, n] to float32 [batch, questions, n, vocabulary].

        `last` float64 [batch] is the stream time of the last frame. Padding on the right does no harm. With `rows` (int64,
        into the flattened tokens) only their logits, [rows, vocabulary].
        """
        batch, questions, n = tokens.shape
        merge = self.config.vision.spatial_merge_size
        time = self.config.tokens_per_second * last.floor().to(torch.int64)
        begin = 1 + torch.clamp(time, min=max(grid) // merge - 1) + 1
        flat = begin.repeat_interleave(questions)[:, None] + torch.arange(n, device=tokens.device)
        hidden = self.model(
            self.model.embed_tokens(tokens.flatten(0, 1)), flat.expand(3, -1, -1), cache.branch(questions)
        )
        chosen: Tensor = hidden.unflatten(0, (batch, questions)) if rows is None else hidden.flatten(0, 1)[rows]
        return self.logits(chosen)


class ChatPrompt:
    """Frames stand between `<|vision_start|>` and `<|vision_end|>`, nothing between them; the chat of Qwen2.5 follows."""

    after: Sequence[int] = ()
    tools: ToolFormat | None = None

    def __init__(self, tokenizer: Vocabulary, config: InfiniteVLConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.opening = (config.vision_start_token_id,)

    def before(self, seconds: float) -> list[int]:
        """Nothing: time is in the positions."""
        return []

    def question(
        self,
        text: str,
        instructions: str,
        history: Sequence[tuple[str, str]],
        thinking: bool,
        tools: Sequence[Tool] = (),
        rounds: Sequence[Round] = (),
    ) -> list[int]:
        """See `Prompt.question`; `instructions` stand in the system turn, the model's own system text where empty."""
        if thinking:
            raise ConfigError("this model does not think before it answers")
        if tools or rounds:
            raise ConfigError("this model calls no tools")
        encode, config = self.tokenizer.encode, self.config
        turns = [("system", instructions or config.system)] if instructions or config.system else []
        for question, answer in history:
            turns += [("user", question), ("assistant", answer)]
        turns.append(("user", text))
        start, end, newline = config.im_start_token_id, config.eos_token_id, encode("\n")
        ids = [config.vision_end_token_id]
        for role, content in turns:
            ids += [start, *encode(f"{role}\n{content}"), end, *newline]
        return [*ids, start, *encode("assistant\n")]


def convert(name: str, value: Tensor, config: DecoderConfig) -> Iterable[tuple[str, Tensor]]:
    """A checkpoint's tensor under the name that this architecture's modules have for it, from either prefix layout."""
    for prefix, ours in (
        ("model.language_model.", "model."),
        ("model.visual.", "visual."),
        ("language_model.model.", "model."),
    ):
        if name.startswith(prefix):
            name = ours + name[len(prefix) :]
            break
    yield name, value


FAMILIES["infinitevl"] = Family(("infinitevl", "infinitevl_qwen2_5_vl"), parse_config, convert, VisionTower, ChatPrompt)
