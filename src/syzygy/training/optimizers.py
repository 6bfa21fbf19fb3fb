"""The optimizers of the training loop: AdamW for all parameters, or Muon for the matrices of hidden layers and AdamW for the rest."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from syzygy.core.errors import UserError
from syzygy.training.schedule import LoopConfig

MUON_MOMENTUM = 0.95
QUANTITIES = {AdamW: ("step", "exp_avg", "exp_avg_sq"), Muon: ("momentum_buffer",)}
"""The state that each optimizer keeps for a parameter."""


def trained_parameters(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by `module.parameter`. Tied parameters count once."""
    named = {id(p): (f"{m}.{n}", p) for m, module in modules.items() for n, p in module.named_parameters()}
    return {name: p for name, p in named.values() if p.requires_grad}


def hidden_matrices(modules: Mapping[str, nn.Module]) -> set[str]:
    """The names of the parameters that Muon trains: the weights of repeated layers.

    They have two or more dimensions and a number in their name (`encoder.layers.3.mlp.fc1.weight`). Layers at the input and the output, which
    are not repeated, and embeddings are AdamW's, as Muon's author advises (Jordan 2024, "Muon: An optimizer for hidden layers").
    """
    embeddings = {
        id(layer.weight) for m in modules.values() for layer in m.modules() if isinstance(layer, nn.Embedding)
    }
    return {
        name
        for name, p in trained_parameters(modules).items()
        if p.ndim >= 2 and id(p) not in embeddings and any(part.isdigit() for part in name.split("."))
    }


class Optimizers:
    """One or two optimizers that step together. Their state is exact on disk, under the names of the parameters."""

    def __init__(self, modules: Mapping[str, nn.Module], config: LoopConfig) -> None:
        parameters = trained_parameters(modules)
        assert parameters and all(torch.finfo(p.dtype).bits >= 32 for p in parameters.values()), (
            "train in float32 (autocast in loss)"
        )
        matrices = hidden_matrices(modules) if config.optimizer == "muon" else set()
        if config.optimizer == "muon" and not matrices:
            raise UserError(
                "optimizer=muon has no effect: no weight of a repeated layer is trained here. Use optimizer=adamw."
            )
        self._flat: dict[str, nn.Parameter] = {}
        """Weights of convolutions as matrices [out, in × height × width]: views of the parameters."""
        self._optimizers: list[tuple[Optimizer, float]] = []
        """Each with its peak learning rate, relative to `config.lr`."""
        rest = {name: p for name, p in parameters.items() if name not in matrices}
        groups = [
            {"params": [x for x in rest.items() if x[1].ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [x for x in rest.items() if x[1].ndim < 2], "weight_decay": 0.0},
        ]
        hidden = {name: p for name, p in parameters.items() if name in matrices}
        self.parameters = {name: p for group in groups for name, p in group["params"]} | hidden
        """Trained parameters in the order in which the norm of their gradients has always been summed."""
        if groups := [group for group in groups if group["params"]]:
            self._optimizers.append((AdamW(groups, lr=config.lr, betas=config.betas, fused=True), 1.0))
        if hidden:
            peak = config.lr if config.muon_lr is None else config.muon_lr
            muon = Muon(
                [(name, self._matrix(name, p)) for name, p in hidden.items()],
                lr=peak,
                weight_decay=config.weight_decay,
                momentum=MUON_MOMENTUM,
                adjust_lr_fn="match_rms_adamw",  # one scale of learning rates for both optimizers
            )
            self._optimizers.append((muon, peak / config.lr))

    def _matrix(self, name: str, parameter: nn.Parameter) -> nn.Parameter:
        if parameter.ndim == 2:
            return parameter
        self._flat[name] = nn.Parameter(parameter.detach().flatten(1))
        assert self._flat[name].data_ptr() == parameter.data_ptr(), "a view, or its updates would be lost"
        return self._flat[name]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def step(self, learning_rate: float) -> None:
        """Update all parameters; `learning_rate` is AdamW's, and Muon's is in proportion."""
        for name, flat in self._flat.items():
            gradient = self.parameters[name].grad
            flat.grad = None if gradient is None else gradient.flatten(1)
        for optimizer, relative in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * relative
            optimizer.step()

    def _named(self) -> Iterator[tuple[Optimizer, str, nn.Parameter]]:
        for optimizer, _ in self._optimizers:
            for group in optimizer.param_groups:
                for name, parameter in zip(group["param_names"], group["params"], strict=True):
                    yield optimizer, name, parameter

    def tensors(self) -> dict[str, Tensor]:
        """`parameter.quantity` → tensor (step count and moments), for every parameter that has had a gradient."""
        return {
            f"{name}.{quantity}": value
            for optimizer, name, parameter in self._named()
            for quantity, value in optimizer.state.get(parameter, {}).items()
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], where: Path) -> None:
        """Overwrite the state by `tensors`, read from the file `where`.

        Raises:
            UserError: the tensors are those of other parameters.
        """
        for optimizer, _ in self._optimizers:
            optimizer.state.clear()
        used = 0
        for optimizer, name, parameter in self._named():
            quantities = QUANTITIES[type(optimizer)]
            if f"{name}.{quantities[0]}" not in tensors:
                continue
            templates = {
                q: torch.zeros((), device=parameter.device) if q == "step" else torch.zeros_like(parameter)
                for q in quantities
            }
            own = {q: tensors[f"{name}.{q}"] for q in quantities if f"{name}.{q}" in tensors}
            check_same_tensors(own, templates, where)
            optimizer.state[parameter] = {q: template.copy_(own[q]) for q, template in templates.items()}
            used += len(own)
        if used != len(tensors):
            raise UserError(f"{where} holds tensors of other parameters. Train in a new folder.")


def check_same_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: Path) -> None:
    """Refuse tensors with other names or shapes than expected."""
    if {name: x.shape for name, x in found.items()} != {name: x.shape for name, x in expected.items()}:
        raise UserError(f"{where} does not fit the model: names or shapes differ. Train in a new folder.")


def state_bytes(modules: Mapping[str, nn.Module], config: LoopConfig) -> int:
    """Size of the optimizers' moments: two numbers for a parameter of AdamW's, one for Muon's."""
    matrices = hidden_matrices(modules) if config.optimizer == "muon" else set()
    return sum(
        p.numel() * p.element_size() * (1 if name in matrices else 2) for name, p in trained_parameters(modules).items()
    )
