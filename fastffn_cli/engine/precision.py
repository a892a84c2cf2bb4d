"""Half precision through Paddle's AMP, on devices that really execute it.

On a CPU Paddle 3.3.1 ignores AMP without an error (loss differences of exactly 0.0), so it is not
even asked there; `choose_precision` says so to the user.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import paddle
from paddle import Tensor, nn

from fastffn_cli.config.schema import Config
from fastffn_cli.config.schema_training import MixPrecision
from fastffn_cli.engine.device import Device
from fastffn_cli.engine.fused_attention import choose_attention, install_attention
from fastffn_cli.engine.optimizer import AdamW
from models.kernels.attention import AttentionCore


@dataclass
class Precision:
    """How a step computes: plain float32, or O1/O2 in `dtype` with a scaler for float16.

    In half precision, attention may be an operator of the device's own.
    """

    dtype: str = "float32"
    level: str = "O0"
    black_list: tuple[str, ...] = ()
    white_list: tuple[str, ...] = ()
    scaler: paddle.amp.GradScaler | None = None
    attention: AttentionCore | None = None  # a fused one of the device; None: the plain one

    @property
    def enabled(self) -> bool:
        """Whether anything is computed in half precision."""
        return self.level != "O0"

    @property
    def multi_precision(self) -> bool:
        """Whether parameters are half and the optimizer keeps float32 masters."""
        return self.level == "O2"

    def describe(self) -> str:
        """Return e.g. `float32` or `float16 O2, loss scale 32768`."""
        if not self.enabled:
            return "float32"
        scale = f", loss scale {self.loss_scale:.0f}" if self.scaler else ""
        fused = ", fused attention" if self.attention else ""
        return f"{self.dtype} {self.level}{scale}{fused}"

    @property
    def loss_scale(self) -> float:
        """The factor on the loss, 1 without a scaler."""
        # Paddle's scaler switches itself off, and has no state, where the device has no use for it.
        state = self.scaler.state_dict() if self.scaler else {}
        return float(state["scale"].item()) if "scale" in state else 1.0

    def decorate(self, model: nn.Layer) -> None:
        """Cast the model's parameters in place for O2 (norms stay float32); fuse its attention."""
        if self.attention is not None:
            install_attention(model, self.attention)
        if self.level == "O2":
            paddle.amp.decorate(model, level="O2", dtype=self.dtype)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which forward passes run."""
        if not self.enabled:
            return contextlib.nullcontext()
        return paddle.amp.auto_cast(
            level=self.level,
            dtype=self.dtype,
            custom_black_list=list(self.black_list),
            custom_white_list=list(self.white_list),
        )

    def scale(self, loss: Tensor) -> Tensor:
        """Multiply the loss by the loss scale."""
        return self.scaler.scale(loss) if self.scaler else loss

    def unscale(self, optimizer: AdamW) -> None:
        """Divide all gradients by the loss scale, in place."""
        if self.scaler:
            self.scaler.unscale_(optimizer.inner)

    def agree(self, *, overflowed: bool) -> None:
        """Let the update be skipped, or made, by what all processes saw and not this one alone."""
        if self.scaler and self.scaler.is_enable():
            self.scaler._found_inf = paddle.to_tensor([overflowed])

    def update(
        self, optimizer: AdamW, learning_rate: float, *, gradient_factor: float = 1.0
    ) -> None:
        """Apply the update; a float16 overflow skips it and lowers the loss scale."""
        if not self.scaler:
            optimizer.step(learning_rate, gradient_factor=gradient_factor)
            return
        optimizer.scale_gradients(gradient_factor)
        optimizer.inner.set_lr(learning_rate)
        self.scaler.step(optimizer.inner)
        self.scaler.update()

    def state(self) -> dict[str, float] | None:
        """Return the scaler's numbers for `trainer.json`."""
        if not self.scaler or not self.scaler.is_enable():
            return None
        return {
            key: float(value.item()) if hasattr(value, "item") else float(value)
            for key, value in self.scaler.state_dict().items()
        }

    def load_state(self, state: dict[str, float] | None) -> None:
        """Restore what `state` returned."""
        if not self.scaler or not self.scaler.is_enable() or not state:
            return
        restored: dict[str, Any] = dict(state)
        restored["scale"] = paddle.to_tensor([state["scale"]], dtype="float32").numpy()
        for counter in (
            "incr_count",
            "decr_count",
            "incr_every_n_steps",
            "decr_every_n_nan_or_inf",
        ):
            if counter in restored:
                restored[counter] = int(restored[counter])
        if "use_dynamic_loss_scaling" in restored:
            restored["use_dynamic_loss_scaling"] = bool(restored["use_dynamic_loss_scaling"])
        self.scaler.load_state_dict(restored)


class LossScaler(paddle.amp.GradScaler):
    """Paddle's GradScaler, which adapts without a word.

    At an overflow Paddle 3.3.1 prints a line on stdout, which is for data. To make it, it takes
    float() of an array of shape [1], which numpy 2.4 refuses: the run would end there.
    """

    _incr_count: int
    _decr_count: int
    _scale: Tensor

    def _update(self) -> None:
        if self._cache_found_inf:
            self._incr_count, self._decr_count = 0, self._decr_count + 1
            if self._decr_count == self._decr_every_n_nan_or_inf:
                self._scale, self._decr_count = self._scale * self._decr_ratio, 0
        else:
            self._incr_count, self._decr_count = self._incr_count + 1, 0
            if self._incr_count == self._incr_every_n_steps:
                self._scale, self._incr_count = self._scale * self._incr_ratio, 0


def settle_precision(config: Config, device: Device) -> tuple[Precision, str | None, str | None]:
    """Return the precision of a run with its attention, a warning and a notice.

    They are those of `choose_precision` and of `choose_attention`. Raises nothing.
    """
    precision, warning = choose_precision(config.Engine.mix_precision, device)
    precision.attention, notice = choose_attention(config, precision.dtype, device)
    return precision, warning, notice


def plan_precision(options: MixPrecision) -> Precision:
    """Return the precision that is asked for, of a run that other devices would train."""
    wanted = options.enable if options.enable is not None else options.use_pure_fp16
    return Precision(options.dtype, options.level) if wanted else Precision()


def choose_precision(options: MixPrecision, device: Device) -> tuple[Precision, str | None]:
    """Return the precision of a run, and a warning where the wish cannot be met.

    Raises nothing: a device without the type trains in float32, and the warning says so.
    """
    wanted = options.enable if options.enable is not None else options.use_pure_fp16
    if not wanted:
        return Precision(), None
    if not device.supports(options.dtype):
        return Precision(), (
            f"Engine.mix_precision asks for {options.dtype} {options.level}, which Paddle silently "
            f"ignores on {device.name}: training in float32. "
            "Set Engine.mix_precision.use_pure_fp16: False to say so yourself."
        )
    scaler = None
    if options.dtype == "float16":
        scaler = LossScaler(init_loss_scaling=options.scale_loss)
    return (
        Precision(
            options.dtype,
            options.level,
            options.custom_black_list,
            options.custom_white_list,
            scaler,
        ),
        None,
    )
