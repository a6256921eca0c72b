"""The base of MMP and linear projection: the used modalities predict the tokens of all others.

    embed ─► projector: for every row and every modality m not used there, T̂_m from the used ones ─► T̂_m replaces T_m
    ─► the rest of the backbone, which sees every modality as used

Rows are selected instead of multiplied by a mask: an unused token enters no arithmetic of its row, and rows without
gaps cost nothing. They are selected on the host, where masking was drawn: their number decides shapes, and reading it
from the device would block the step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mmsweep.data.dataset import Batch
from mmsweep.errors import UserError
from mmsweep.methods.method import Method, Output, StandIn, Term
from mmsweep.methods.options import AligningMethodOptions
from mmsweep.models.backbone import Backbone
from mmsweep.models.encoder import Tokens
from mmsweep.models.lora import Noise
from mmsweep.models.packing import Packed, stack
from mmsweep.transfer import sent


@dataclass(frozen=True)
class TokenShape:
    """The shape of a modality's tokens in training, for all frames of a clip together.

    Args:
        count: N_m.
        width: D_m.
        grid: (h, w) or (n,) of one sequence, prefix tokens (CLS) not counted.
        sequences: frames of a clip, 1 otherwise.
    """

    count: int
    width: int
    grid: tuple[int, ...]
    sequences: int = 1

    @property
    def prefix(self) -> int:
        return self.count // self.sequences - math.prod(self.grid)


@dataclass(frozen=True)
class Sequence:
    """One modality's tokens, one row per sample: values [B, N, D]; mask [B, N], False for padding, or None."""

    values_BND: Tensor
    mask_BN: Tensor | None
    grid: tuple[int, ...]

    def rows(self, rows: slice) -> Sequence:
        """Some samples of the batch."""
        return replace(
            self, values_BND=self.values_BND[rows], mask_BN=None if self.mask_BN is None else self.mask_BN[rows]
        )


@dataclass(frozen=True)
class Restored:
    """Predicted tokens [R, N, D] of one modality for the R rows that do not use it; `rows_R` is on the host."""

    rows_R: Tensor
    values_RND: Tensor


class Projector(Packed, ABC):
    """Predicts tokens of unused modalities. Attributes: `shapes`, modality -> TokenShape, in the dataset's order.

    Written for one slot: a method stacks the parameters and calls it for each slot in turn, because the number of rows
    to restore differs between slots.
    """

    shapes: dict[str, TokenShape]

    def stacked(self) -> Iterator[tuple[nn.Module, str]]:
        for module in self.modules():
            yield from ((module, name) for name, _ in module.named_parameters(recurse=False))

    @abstractmethod
    def forward(self, tokens: Mapping[str, Sequence], used_BM: Tensor) -> dict[str, Restored]:
        """T̂_m for every modality that some row does not use, [R, N_m, D_m] with N_m as training has it.

        Args:
            tokens: read only in rows that use them.
            used_BM: on the host; no row is empty.
        """

    @abstractmethod
    def reset(self, generator: torch.Generator) -> None:
        """Draw initial values, on the CPU."""


class Restoring(Method, ABC):
    """A method that restores tokens with the projector of its subclass.

    Masked modalities are hidden from the projector and the fusion; T̂ is aligned with their real tokens. Modalities that
    the data lacks are restored too, but there are no tokens to align with.
    """

    backbone: Backbone
    options: AligningMethodOptions

    def __init__(
        self, backbone: Backbone, options: AligningMethodOptions, noise: Noise, generator: torch.Generator
    ) -> None:
        super().__init__(backbone, options, noise, generator)
        self.weights = {"align": options.alignment}
        device = next(backbone.parameters()).device
        with torch.device(device):
            self.projector = self.make_projector(token_shapes(backbone))
        if device.type != "meta":
            self.projector.reset(generator)
        stack(self.projector)
        self.aligns = options.alignment > 0

    @abstractmethod
    def make_projector(self, shapes: dict[str, TokenShape]) -> Projector:
        """The projector, not yet initialised."""

    def forward(self, batch: Batch, used_BM: Tensor) -> Output:
        tokens = self.backbone.embed(batch)
        whole, restored = self.restore(tokens, used_BM.cpu())
        prediction = self.backbone.predict(whole, torch.ones_like(batch.present_BM))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.aligns):
            align = self.alignment(tokens, restored, batch.present_on_host())
        return Output(prediction, {"align": align})

    def predict_patterns(self, batch: Batch, patterns_PM: Tensor) -> Tensor:
        """Embeds once; restores and predicts once per pattern. Undefined for rows without modalities in a pattern."""
        tokens, predictions = self.backbone.embed(batch), []
        for pattern_M in patterns_PM.cpu():
            used_BM = batch.present_on_host() & pattern_M
            used_BM = torch.where(used_BM.any(1, keepdim=True), used_BM, torch.ones_like(used_BM))
            whole, _ = self.restore(tokens, used_BM)
            predictions.append(self.backbone.predict(whole, torch.ones_like(batch.present_BM)))
        return torch.stack(predictions)

    def stand_ins(self, batch: Batch) -> dict[str, StandIn]:
        """Real tokens and those predicted from the other modalities."""
        tokens, found = self.backbone.embed(batch), {}
        for column, (modality, shape) in enumerate(self.projector.shapes.items()):
            used_BM = torch.ones_like(batch.present_on_host())
            used_BM[:, column] = False
            _, restored = self.restore(tokens, used_BM)
            real = per_sample(tokens[modality], shape)
            guess_BND = restored[modality].values_RND[:, : real.values_BND.shape[1]]
            found[modality] = StandIn(real.values_BND, guess_BND, real.mask_BN)
        return found

    def restore(self, tokens: Mapping[str, Tokens], used_BM: Tensor) -> tuple[dict[str, Tokens], dict[str, Restored]]:
        """(tokens with T̂_m in the rows that do not use m, T̂_m as in these tokens); unchanged if nothing is missing.

        Args:
            used_BM: on the host.
        """
        missing_M = (~used_BM).any(0) if self.noise.missing_M is None else self.noise.missing_M
        if not missing_M.any():
            return dict(tokens), {}
        sequences = {m: per_sample(t, self.projector.shapes[m]) for m, t in tokens.items()}
        restored = self.project(sequences, used_BM)
        whole, placed = dict(tokens), {}
        for column, (modality, shape) in enumerate(self.projector.shapes.items()):
            if missing_M[column]:
                found = restored.get(modality)
                whole[modality], back = put(tokens[modality], found, shape)
                if back is not None:
                    placed[modality] = back
        return whole, placed

    def project(self, sequences: Mapping[str, Sequence], used_BM: Tensor) -> dict[str, Restored]:
        """T̂_m for every modality that some row does not use; each slot's rows go through that slot's projector."""
        weights = {name: p.unbind() for name, p in self.projector.named_parameters()}
        S = len(next(iter(weights.values())))
        B = len(used_BM) // S
        found: dict[str, list[Restored]] = {}
        for slot in range(S):
            share = slice(slot * B, (slot + 1) * B)
            own = {name: parts[slot] for name, parts in weights.items()}
            given = {m: x.rows(share) for m, x in sequences.items()}
            for m, part in functional_call(self.projector, own, (given, used_BM[share]), tie_weights=False).items():
                found.setdefault(m, []).append(Restored(part.rows_R + slot * B, part.values_RND))
        return {
            m: Restored(torch.cat([p.rows_R for p in parts]), torch.cat([p.values_RND for p in parts]))
            for m, parts in found.items()
        }

    def join(self, others: Several[Self]) -> None:
        super().join(others)
        self.aligns = self.aligns or any(o.aligns for o in others)

    def alignment(self, tokens: Mapping[str, Tokens], restored: Mapping[str, Restored], present_BM: Tensor) -> Term:
        """Equation 7 per sample: Smooth-L1 between T_m and T̂_m, averaged over the modalities that were masked.

        Only rows in which a present modality was masked count; a modality's error is the mean over its tokens (without
        padding) and widths.

        Args:
            present_BM: on the host.
        """
        B, device = present_BM.shape[0], next(iter(tokens.values())).values_BND.device
        sum_B = torch.zeros(B, device=device)
        count_B = torch.zeros(B, device=device)
        for column, (modality, shape) in enumerate(self.projector.shapes.items()):
            if modality not in restored:
                continue
            found, real = restored[modality], per_sample(tokens[modality], shape)
            keep_R = present_BM[found.rows_R, column]
            rows_R = sent(found.rows_R[keep_R], device)
            guess_RND = found.values_RND[sent(keep_R.nonzero()[:, 0], device)]
            truth_RND = real.values_BND[rows_R]
            n = truth_RND.shape[1]  # texts are cut to the batch's longest
            if self.options.detach_target:  # B32
                truth_RND = truth_RND.detach()
            error_RN = F.smooth_l1_loss(guess_RND[:, :n].float(), truth_RND.float(), reduction="none").mean(-1)
            weight_RN = torch.ones_like(error_RN) if real.mask_BN is None else real.mask_BN[rows_R].to(error_RN.dtype)
            error_R = (error_RN * weight_RN).sum(1) / weight_RN.sum(1).clamp(min=1)
            sum_B = sum_B.index_add(0, rows_R, error_R)
            count_B = count_B.index_add(0, rows_R, torch.ones_like(error_R))
        return Term(sum_B / count_B.clamp(min=1), count_B > 0)


def token_shapes(backbone: Backbone) -> dict[str, TokenShape]:
    """Every modality's tokens as the backbone embeds full-length inputs."""
    grids, shapes = backbone.token_grids(), {}
    for modality, (n, width) in backbone.token_shapes().items():
        sequences = backbone.clip_frames.get(modality, 1)
        shapes[modality] = TokenShape(n * sequences, width, grids[modality], sequences)
    return {m: shapes[m] for m in backbone.modalities}


def per_sample(tokens: Tokens, shape: TokenShape) -> Sequence:
    """Tokens with one row per sample: the frames of a clip are concatenated.

    Raises:
        UserError: clips of another number of frames than the projector was made for.
    """
    if tokens.sequences != shape.sequences:
        raise UserError(
            "clips of another length than the projector was made for",
            key="data.video.frames",
            found=tokens.sequences,
            expected=str(shape.sequences),
        )
    if tokens.sequences == 1:
        return Sequence(tokens.values_BND, tokens.mask_BN, tokens.grid)
    mask_BN = tokens.mask_BN
    if mask_BN is not None:
        mask_BN = mask_BN.unflatten(0, (-1, tokens.sequences)).flatten(1, 2)
    return Sequence(tokens.values_BND.unflatten(0, (-1, tokens.sequences)).flatten(1, 2), mask_BN, tokens.grid)


def put(tokens: Tokens, restored: Restored | None, shape: TokenShape) -> tuple[Tokens, Restored | None]:
    """Replace real tokens by predicted ones in the rows that need them.

    T̂ is resized to grids of another size than training's (B34). Sequences are padded to the full length of T̂, so that a
    row does not depend on the lengths of other rows in the batch.

    Args:
        restored: T̂ on the training grid; None if no row needs it, but the length must be as if one did.

    Returns:
        The tokens, and T̂ as in these tokens.
    """
    values_BND, mask_BN, grid = tokens.values_BND, tokens.mask_BN, tokens.grid
    if mask_BN is not None:  # clips of padded frames do not exist: one sequence a sample
        more = max(shape.count - values_BND.shape[1], 0)
        values_BND, mask_BN = F.pad(values_BND, (0, 0, 0, more)), F.pad(mask_BN, (0, more))
        grid = (values_BND.shape[1] - shape.prefix,)
    if restored is None:
        return replace(tokens, values_BND=values_BND, mask_BN=mask_BN, grid=grid), None
    rows_R, guess_RND = sent(restored.rows_R, values_BND.device), restored.values_RND.to(values_BND.dtype)
    if mask_BN is None:
        guess_RND = resize(guess_RND, shape, grid)
    else:
        beyond = values_BND.shape[1] - guess_RND.shape[1]
        guess_RND = F.pad(guess_RND, (0, 0, 0, beyond))
        own_N = torch.arange(values_BND.shape[1], device=mask_BN.device) < shape.count
        mask_BN = mask_BN.index_copy(0, rows_R, own_N.expand(len(rows_R), -1))
    per_sample_BND = values_BND.unflatten(0, (-1, tokens.sequences)).flatten(1, 2)
    mixed_BND = per_sample_BND.index_copy(0, rows_R, guess_RND)
    values_BND = mixed_BND.unflatten(1, (tokens.sequences, -1)).flatten(0, 1)
    return replace(tokens, values_BND=values_BND, mask_BN=mask_BN, grid=grid), Restored(restored.rows_R, guess_RND)


def resize(values_RND: Tensor, shape: TokenShape, grid: tuple[int, ...]) -> Tensor:
    """Tokens of the training grid on another: bilinear for (h, w), linear for (n,), the prefix unchanged (B34).

    An equal grid gives the very same tensor.
    """
    if grid == shape.grid:
        return values_RND
    frames_QND = values_RND.unflatten(1, (shape.sequences, -1)).flatten(0, 1)
    prefix_QND, inner_QND = frames_QND[:, : shape.prefix], frames_QND[:, shape.prefix :]
    laid = inner_QND.transpose(1, 2).unflatten(2, shape.grid)
    mode = "bilinear" if len(grid) == 2 else "linear"
    moved = F.interpolate(laid, size=grid, mode=mode, align_corners=False).flatten(2).transpose(1, 2)
    whole_QND = torch.cat([prefix_QND, moved], 1)
    return whole_QND.unflatten(0, (-1, shape.sequences)).flatten(1, 2)
