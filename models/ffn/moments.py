"""AdamW's moments across a change of parametrisation: factors and product, growth, and blocks.

Plain numpy in float64; no function here knows a layer or an optimizer. With W = left @ right and
the loss's gradient G in W, the factors see G·rightᵀ and leftᵀ·G: all that a stage of training with
factors has learnt of G lies in the tangent space {X·right + left·Y} at W.

Shape legend: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

# Singular values below this share of the largest one are noise in a factor kept in float32, whose
# entries have 24 bits: dividing by them would make the noise as large as the signal.
CUTOFF = 1e-6


@dataclass(frozen=True)
class MergedParameter:
    """A parameter of a merged layer: its shape, and the parameters that it takes the place of."""

    shape: tuple[int, ...]
    sources: tuple[str, ...]


@runtime_checkable
class MergesState(Protocol):
    """A layer whose `merge()` puts new parameters in the place of some of its own.

    All names are relative to the layer. A parameter that is neither new nor a source keeps its name
    and its state. A layer that merges by merging its sublayers leaves this to them.
    """

    def merged_parameters(self) -> dict[str, MergedParameter]:
        """Return the parameters that `merge()` makes, by their names in the merged layer."""

    def merge_state(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return what an optimizer's state of this layer says of the new parameters, in float64.

        `state` holds `NAME.moment1` and `NAME.moment2` of this layer's parameters, and
        `NAME.master` where half precision parameters have float32 masters. The result has the same
        entries of the new parameters; without moments where the layer knows no way to lift them.
        Arrays that are shorter than the parameter along one axis are those of its first entries:
        `merge()` appends the others, hidden units that no training has seen (`grow_moments`).
        `NAME.copied` in the result, bool and of a shape that broadcasts to the moments', is true
        where they are a parameter's own, entry by entry, and not an estimate.
        Raises `KeyError` naming what `state` lacks.
        """


@runtime_checkable
class SplitsState(MergesState, Protocol):
    """A layer that stands in for a trained dense one and can take over its optimizer's state."""

    def split_state(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the moments of all sources of `merged_parameters`, in float64.

        `state` holds `NAME.moment1` and `NAME.moment2` of the dense layer's parameters, by the
        names of `merged_parameters`. The result may have `NAME.copied`, as in `merge_state`.
        Raises `KeyError` naming what `state` lacks, and `ValueError` for a layer that does not
        know which part of the dense one it is.
        """


@runtime_checkable
class MovesMerged(Protocol):
    """A layer whose updates move what it merges to faster or slower than dense updates would."""

    def merged_rates(self) -> dict[str, float]:
        """Return the multiple of the learning rate, for each of `merged_parameters`, at which a
        dense update is as large (root mean square) as the layer's own has been: `pair_rate`.
        """


def lift_first_moment(
    left_IR: np.ndarray, right_RO: np.ndarray, m_left_IR: np.ndarray, m_right_RO: np.ndarray
) -> np.ndarray:
    """Return the moment [I, O] of left @ right whose shares in the factors are the given ones.

    It is the least-squares solution of the smallest Frobenius norm of
        m @ rightᵀ = m_left   and   leftᵀ @ m = m_right.
    Moments of constant factors fulfil both exactly, and m is the true moment's part in the tangent
    space, P·m + m·Q - P·m·Q with the projectors P on left's columns and Q on right's rows. Moments
    that were averaged while the factors moved contradict each other in leftᵀ·m·rightᵀ; with
    left = U·diag(s)·Xᵀ and right = Y·diag(t)·Vᵀ, both measurements of Uᵀ·m·V are then weighed by
    their precision:
        (Uᵀ·m·V)[i, j] = (t_j·(Uᵀ·m_left·Y)[i, j] + s_i·(Xᵀ·m_right·V)[i, j]) / (s_i² + t_j²).
    Singular values up to `CUTOFF` times the factor's largest count as zero.

    Derived here; for full-rank factors and moments that agree it is the closed form
    m_left(BBᵀ)⁻¹B + A(AᵀA)⁻¹m_right - A(AᵀA)⁻¹(Aᵀm_left)(BBᵀ)⁻¹B, A = left, B = right.
    """
    left_basis_IK, s_K, left_mix_KR = _thin_svd(left_IR)
    right_mix_RL, t_L, right_basis_LO = _thin_svd(right_RO)
    from_left_IL = _double(m_left_IR) @ right_mix_RL
    from_right_KO = left_mix_KR @ _double(m_right_RO)
    core_left_KL = left_basis_IK.T @ from_left_IL
    core_right_KL = from_right_KO @ right_basis_LO.T
    core_KL = (core_left_KL * t_L + core_right_KL * s_K[:, None]) / (s_K[:, None] ** 2 + t_L**2)
    outside_left_IL = (from_left_IL - left_basis_IK @ core_left_KL) / t_L
    outside_right_KO = (from_right_KO - core_right_KL @ right_basis_LO) / s_K[:, None]
    return (
        outside_left_IL @ right_basis_LO
        + left_basis_IK @ outside_right_KO
        + left_basis_IK @ core_KL @ right_basis_LO
    )


def lift_second_moment(
    left_IR: np.ndarray, right_RO: np.ndarray, v_left_IR: np.ndarray, v_right_RO: np.ndarray
) -> np.ndarray:
    """Estimate the mean square gradient [I, O] of left @ right from those of the factors.

    Under v = ρ·cᵀ (the rank-1 model of Adafactor, Shazeer & Stern 2018) and uncorrelated entries of
    the gradient, the factors' rows and columns sum to
        a_i = Σ_k v_left[i, k]  = ρ_i · Σ_j c_j ‖right[:, j]‖²
        b_j = Σ_k v_right[k, j] = c_j · Σ_i ρ_i ‖left[i, :]‖²,
    so that, exactly,
        v[i, j] = a_i b_j / √(Σ_j b_j ‖right[:, j]‖² · Σ_i a_i ‖left[i, :]‖²).
    Gradients do correlate with the factors, which makes the estimate too large as a whole:
    `probe_scale` corrects that. Where a factor is zero its partner has seen no gradient; rows (or
    columns) are then taken as alike, v[i, j] = a_i / ‖right‖² + b_j / ‖left‖².

    Derived here. Never negative; zeros give zeros.
    """
    row_I, column_O = _double(v_left_IR).sum(axis=1), _double(v_right_RO).sum(axis=0)
    left_energy_I = np.square(_double(left_IR)).sum(axis=1)
    right_energy_O = np.square(_double(right_RO)).sum(axis=0)
    root = np.sqrt(column_O @ right_energy_O) * np.sqrt(row_I @ left_energy_I)
    if root > 0:
        return np.outer(row_I / root, column_O)
    row_I, column_O = (
        sums / energy.sum() if energy.any() else np.zeros_like(sums)
        for sums, energy in ((row_I, right_energy_O), (column_O, left_energy_I))
    )
    return row_I[:, None] + column_O


def copy_state(state: Mapping[str, np.ndarray], source: str, name: str) -> dict[str, np.ndarray]:
    """Return, in float64, what `merge_state` says of a parameter `name` that is `source` itself.

    Raises `KeyError` naming what `state` lacks.
    """
    entries = {
        f"{name}.{moment}": _double(state[f"{source}.{moment}"])
        for moment in ("moment1", "moment2")
    }
    if f"{source}.master" in state:
        entries[f"{name}.master"] = _double(state[f"{source}.master"])
    return {**entries, f"{name}.copied": np.array(True)}


def split_moments(
    left_IR: np.ndarray, right_RO: np.ndarray, moment1_IO: np.ndarray, moment2_IO: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return both moments of left, then both of right, from those of the matrix they stand for.

    The chain rule gives the first ones, exact for factors at rest: m_left = m·rightᵀ and m_right =
    leftᵀ·m. The second ones are those of uncorrelated entries of the gradient, of which variances
    add up: v_left[i, k] = Σ_j v[i, j]·right[k, j]², v_right[k, j] = Σ_i left[i, k]²·v[i, j].
    `lift_first_moment` and `lift_second_moment` go the other way.
    """
    left, right = _double(left_IR), _double(right_RO)
    first, second = _double(moment1_IO), _double(moment2_IO)
    return (
        (first @ right.T, second @ np.square(right).T),
        (left.T @ first, np.square(left).T @ second),
    )


def pair_rate(
    left_IR: np.ndarray, right_RO: np.ndarray, rate_left: float, rate_right: float
) -> float:
    """Return κ, at whose multiple of the learning rate a dense update is as large as the factors'.

    An Adam step is sign-like: at rates η·rate_left and η·rate_right the product moves by
    ΔA·B + A·ΔB, of root mean square about η·√R·(rate_left·rms(B) + rate_right·rms(A)), where a
    dense step moves it by η: signs that do not go with the other factor's entries, and both parts
    follow the same gradient, so that they add up rather than cancel.
    """
    rank = left_IR.shape[1]
    rms_left, rms_right = (
        math.sqrt(np.mean(np.square(_double(factor)))) for factor in (left_IR, right_RO)
    )
    return math.sqrt(rank) * (rate_left * rms_right + rate_right * rms_left)


def complete_second_moment(moment2_IO: np.ndarray, known_IO: np.ndarray) -> np.ndarray:
    """Fill in the entries of a second moment that are not `known` (bool) from its rows and columns.

    Under v = ρ·cᵀ (as in `lift_second_moment`), with r_i and c_j the means of the known entries of
    row i and column j,
        v[i, j] = r_i·c_j / √(s_i·t_j),
    s_i the mean of c over the known columns of row i, t_j that of r over the known rows of column
    j. Blocks on a diagonal leave the ratio of ρ to c in each block open; the estimate is exact
    where it is the same in all blocks. Known entries stay as they are, and every row and every
    column needs one.
    """
    known = known_IO.astype(np.float64)
    v = np.where(known_IO, _double(moment2_IO), 0.0)
    row_I = v.sum(axis=1) / known.sum(axis=1)
    column_O = v.sum(axis=0) / known.sum(axis=0)
    typical_I = known @ column_O / known.sum(axis=1)
    typical_O = row_I @ known / known.sum(axis=0)
    # Of rows without any second moment there is nothing to say but zero.
    scaled_I = np.divide(row_I, np.sqrt(typical_I), out=np.zeros_like(row_I), where=typical_I > 0)
    scaled_O = np.divide(
        column_O, np.sqrt(typical_O), out=np.zeros_like(column_O), where=typical_O > 0
    )
    return np.where(known_IO, v, np.outer(scaled_I, scaled_O))


def probe_scale(v: np.ndarray, gradients: Sequence[np.ndarray]) -> float:
    """Return κ = mean(g²) / mean(v): what `v` has to be multiplied by to have the probes' size.

    `gradients` are one or more of the dense matrix, of `v`'s shape, taken as the optimizer would
    see them: of a whole step's tokens, clipped. `v` is an average of squares, without the factor
    1 - beta2^t by which Adam's moment falls short of one. κ is 1 if `v` is zero: there is nothing
    to scale. Raises `ValueError` without gradients or for one of another shape.
    """
    if not len(gradients):
        raise ValueError("a scale needs at least one probe gradient")
    for gradient in gradients:
        if gradient.shape != v.shape:
            raise ValueError(f"a probe gradient is {gradient.shape}, the moment {v.shape}")
    mean = float(np.mean(_double(v)))
    if mean == 0:
        return 1.0
    return float(np.mean([np.mean(np.square(_double(g))) for g in gradients])) / mean


def grow_moments(
    moment1: np.ndarray, moment2: np.ndarray, added: int, axis: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return both moments with `added` entries more along `axis`, for hidden units appended there.

    The new first moments are 0; the new second ones are the median over the existing units, so that
    a new unit's first steps are as long as an ordinary one's. (A zero would make them sign-like and
    the largest of all; cold states after growth are what SPARKLING, arXiv 2602.02472, resets
    apart.) Use axis 1 for the matrix [I, hidden] into the hidden units, 0 for its bias [hidden] and
    for the matrix [hidden, O] out of them.
    """
    first, second = _double(moment1), _double(moment2)
    typical = np.median(second, axis=axis, keepdims=True)
    new = np.repeat(typical, added, axis=axis)
    return (
        np.concatenate([first, np.zeros_like(new)], axis=axis),
        np.concatenate([second, new], axis=axis),
    )


def blocked_share(left_IR: np.ndarray, right_RO: np.ndarray, gradient_IO: np.ndarray) -> float:
    """Return ρ = ‖(I - P) G (I - Q)‖² / ‖G‖²: the share of a gradient that no factor sees.

    P projects on left's columns, Q on right's rows, singular values up to `CUTOFF` of the largest
    left out. 0 for a gradient of zero. Derived here, as a criterion for the end of stage 1.
    """
    gradient = _double(gradient_IO)
    energy = float(np.square(gradient).sum())
    if energy == 0:
        return 0.0
    left_basis_IK, _, _ = _thin_svd(left_IR)
    _, _, right_basis_LO = _thin_svd(right_RO)
    blocked = gradient - left_basis_IK @ (left_basis_IK.T @ gradient)
    blocked -= (blocked @ right_basis_LO.T) @ right_basis_LO
    return float(np.square(blocked).sum()) / energy


def _thin_svd(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return u, s, vᵀ of the singular values above the cut-off: none for a matrix of zeros."""
    u, s, vt = np.linalg.svd(_double(matrix), full_matrices=False)
    rank = int(np.count_nonzero(s > CUTOFF * s[0]))
    return u[:, :rank], s[:rank], vt[:rank]


def _double(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, dtype=np.float64)
