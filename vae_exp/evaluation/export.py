"""Write the encoder and the decoder of a model as files that run without vae_exp: ONNX, and torch.export's programs."""

import contextlib
import copy
import functools
import io
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from vae_exp.datasets.conditions import Conditions, spread
from vae_exp.errors import UserError, first_line, printable, require_extra
from vae_exp.evaluation.codes import posterior_tensors
from vae_exp.files import making, partial_of, writing
from vae_exp.vae import VAE

Tensors = dict[str, Tensor]  # inputs or outputs by name, each [N, ...]
Run = Callable[[Tensors], Tensors]
BATCHES = (7, 1)  # sizes in which a file is run and compared with PyTorch
TOLERANCE = 1e-5  # of outputs up to 1, and of larger ones relative to the largest
ABOUT = "about.json"  # inside a .pt2 file


class Part(nn.Module):
    """An encoder or a decoder with what makes numbers of its outputs, and nothing else of the model."""

    unused: tuple[str, ...]

    def __init__(self, model: VAE, conditions: Conditions | None) -> None:
        super().__init__()
        self.conditions = conditions
        self.vae = copy.deepcopy(model).cpu()
        for other in self.unused:
            setattr(self.vae, other, None)
        if conditions is not None:
            self.vae.contexts = None  # a row for each combination, which `labels` makes of the values

    def labels(self, x: Tensor, given: tuple[Tensor, ...]) -> Tensor:
        """Return the labels of x [N, ...], or what the networks see of several conditions."""
        if self.conditions is not None:
            return self.conditions.join(given)
        return given[0] if given else torch.zeros(x.shape[0], dtype=torch.long)


class Encoder(Part):
    """Give what q(z|x) has of images [N, C, H, W] in [0, 1]."""

    unused = ("decoder", "likelihood", "prior")

    def forward(self, image: Tensor, *conditions: Tensor) -> Tensors:
        return posterior_tensors(self.vae.encode(image, self.labels(image, conditions)))


class Decoder(Part):
    """Give the mean of p(x|z) at codes [N, Z], [N, C, H, W]."""

    unused = ("encoder", "posterior", "prior")

    def forward(self, z: Tensor, *conditions: Tensor) -> Tensors:
        return {"image": self.vae.decode(z, self.labels(z, conditions)).mean}


PARTS: dict[str, type[Part]] = {"encoder": Encoder, "decoder": Decoder}


@torch.no_grad()
def write(model: VAE, path: Path, about: Mapping[str, Any], conditions: Conditions | None) -> dict[str, float]:
    """Write the part of a model that path names, as .onnx or .pt2, with JSON values that say what it is.

    The file is run in two sizes of batch before it takes its place; returned is how far each of its outputs is from
    PyTorch's. Raises UserError if that is too far, and if the part cannot be traced or the file cannot be written.
    """
    name = _part(path)
    if path.suffix == ".onnx":
        require_extra("onnx", str(path), "A .pt2 file needs nothing.")
    labels = [spread(n, max(model.n_classes, 1)) for n in BATCHES]
    inputs = [_examples(model, name, y, conditions) for y in labels]
    own = PARTS[name](model, None)  # takes labels, as the model itself
    expected = [own(next(iter(tensors.values())), y) for tensors, y in zip(inputs, labels, strict=True)]
    program = _trace(PARTS[name](model, conditions), name, inputs[0])
    about = {**about, "inputs": [*inputs[0]], "outputs": [*expected[0]]}
    with writing(path), making(path.parent):
        partial = partial_of(path)
        partial.mkdir()
        try:
            run = FORMATS[path.suffix](program, partial / path.name, about)
            differences = _compare(path, [run(tensors) for tensors in inputs], expected)
            for file in partial.iterdir():  # the weights of a large ONNX file lie beside it
                file.replace(path.with_name(file.name))
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return differences


def _part(path: Path) -> str:
    name = path.stem.replace("_", "-").split("-")[-1]
    if name not in PARTS:
        names = f"encoder{path.suffix}, decoder{path.suffix}, or more before it, as in mnist-decoder{path.suffix}"
        raise UserError(f"{path}: such a file holds one part of a model, by its name: {names}.")
    return name


def _examples(model: VAE, name: str, y: Tensor, conditions: Conditions | None) -> Tensors:
    """Return codes of the prior, or images drawn at them, with what the model is told beside them: labels y [N]."""
    n, y_there, noise = len(y), y.to(model.device), torch.Generator().manual_seed(0)
    z = model.prior_sample(n, noise, y_there) if model.stochastic else torch.randn(n, model.z_dim, generator=noise)
    given = {"label": y} if model.n_classes else {}
    if conditions is not None:
        columns = {f"condition_{name}": values for name, values in conditions.given(y).items()}
        given = {name: values.float() if values.is_floating_point() else values for name, values in columns.items()}
    if name == "decoder":
        return {"z": z.cpu()} | given
    return {"image": model.decode(z.to(model.device), y_there).mean.clamp(0, 1).cpu()} | given


def _trace(part: nn.Module, name: str, tensors: Tensors) -> ExportedProgram:
    (first, *conditions), n = tensors, {0: torch.export.Dim("N")}
    shapes = {first: n} | ({"conditions": (n,) * len(conditions)} if conditions else {})
    trace = functools.partial(torch.export.export, part, tuple(tensors.values()), dynamic_shapes=shapes)
    with _quiet():
        try:
            program = trace()
        except Exception as error:  # of any class
            try:  # where len(x), in code of one's own, makes a constant of the batch's size
                program = trace(strict=True)
            except Exception:
                raise UserError(f"{name}: torch.export cannot trace it ({first_line(error)}).") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # which names folders of this machine
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torch prints on its way: warnings, and the graph with which it could not go on."""
    before, nowhere = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _write_onnx(program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> Run:
    import onnxruntime

    outputs, shapes = about["outputs"], {name: {0: "N"} for name in about["inputs"]}
    names: dict[str, Any] = {"input_names": about["inputs"], "output_names": outputs, "dynamic_shapes": shapes}
    try:
        with _quiet():
            written: Any = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    except Exception as error:
        reason = first_line(error.__cause__ or error)
        raise UserError(f"{path.stem}: torch.onnx cannot write it ({reason}). A .pt2 file may do.") from error
    for key, value in about.items():
        written.model.metadata_props[key] = printable(value) if isinstance(value, str) else json.dumps(value)
    written.save(str(path))  # above 2 GB with the weights in a file of their own
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(tensors: Tensors) -> Tensors:
        arrays = session.run(outputs, {name: values.numpy() for name, values in tensors.items()})
        return {name: torch.from_numpy(array) for name, array in zip(outputs, arrays, strict=True)}

    return run


def _write_program(program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> Run:
    content = io.BytesIO()  # where a disk is full, torch's own writer of files aborts the process
    torch.export.save(program, content, extra_files={ABOUT: json.dumps(about)})
    path.write_bytes(content.getbuffer())
    module = torch.export.load(path).module()
    return lambda tensors: module(*tensors.values())


FORMATS = {".onnx": _write_onnx, ".pt2": _write_program}


def _compare(path: Path, given: list[Tensors], expected: list[Tensors]) -> dict[str, float]:
    """Return the largest difference of each output. Raises UserError for one that is more than rounding."""
    result = {}
    for name in expected[0]:
        pairs = [(a[name], b[name]) for a, b in zip(given, expected, strict=True)]
        result[name] = max((a - b).abs().max().item() for a, b in pairs)
        largest = max(b.abs().max().item() for _, b in pairs)
        if not result[name] <= TOLERANCE * max(1.0, largest):
            raise UserError(f"{path}: its {name} differs by {result[name]:.1e} from PyTorch's; it was not written.")
    return result
