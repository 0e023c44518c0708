"""How did features form, seen afterwards from the checkpoints that a training left?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from convscope.core.errors import CheckpointError, UsageError
from convscope.core.record import Record
from convscope.core.run import PLAIN, Run, with_old_keywords
from convscope.core.units import Unit
from convscope.metrics.randomisation import copied
from convscope.network.checkpoint import open_checkpoint
from convscope.network.load import load
from convscope.network.network import Network, whole
from convscope.network.provenance import recorded
from convscope.network.weights import chosen, fit, snapshots
from convscope.pictures.opening import opened
from convscope.pictures.pictures import Pictures
from convscope.records.predictions import Convergence, Evolution
from convscope.studies.base import Ask, arguments
from convscope.studies.evolution import Options
from convscope.studies.evolution.recorder import EPOCHS, PER_LAYER, SIDE, EvolutionRecorder


@with_old_keywords
@recorded
def evolution(
    checkpoints: Path | str,
    folder: Pictures | Path | str,
    network: Network | None = None,
    *,
    epochs: Sequence[int] | None = None,
    layers: Sequence[str] | None = None,
    units: Sequence[Unit | str] = (),
    per_layer: int = PER_LAYER,
    side: int = SIDE,
    run: Run = PLAIN,
) -> tuple[Evolution, Convergence]:
    """What an `EvolutionRecorder` would have seen, and from which epoch on each layer stays.

    checkpoints: a folder of them, or of a run trained with `keep`; see `snapshots`. network: that
    they are weights of, with its preprocessing; by default as they say themselves. epochs: by
    default the paper's that are there, and the last; all that are there if these are fewer than
    three. run: its progress is over all pictures of all epochs. The rest as in `EvolutionRecorder`.

    Raises DataError D163, D190 to D194, CheckpointError C400 to C416, C440, C441 (the network is
    not known), ModelError M527 and what `topk`, `fields` and `deconvnet` raise.
    """
    there = snapshots(checkpoints)
    wanted = chosen(there, epochs, EPOCHS, str(checkpoints))
    network = _network_of(there[wanted[-1]]) if network is None else whole(network)
    with opened(folder) as pictures:
        recorder = EvolutionRecorder(
            pictures,
            network.preprocess,
            layers=layers,
            units=units,
            per_layer=per_layer,
            epochs=None,
            side=side,
            run=run,
        )
        _look(recorder, network, {epoch: there[epoch] for epoch in wanted}, run)
        return recorder.record(), recorder.convergence()


def _look(
    recorder: EvolutionRecorder, network: Network, checkpoints: Mapping[int, Path], run: Run
) -> None:
    """Show the recorder a copy of the network with each epoch's weights."""
    model = copied(network.model)
    for place, (epoch, path) in enumerate(checkpoints.items()):
        result = open_checkpoint(path)
        fit(model, result.weights, name=result.name, network=network.spec)
        recorder.run = run.part(place, len(checkpoints)).inside(str(epoch))
        recorder.look(epoch, model)


def _network_of(checkpoint: Path) -> Network:
    """The network that a checkpoint says it belongs to."""
    try:
        return load(checkpoint)
    except CheckpointError as fault:
        if fault.code != "C415":
            raise
        what = "does not say which network it belongs to"
        step = "name the network with --model (network=)"
        raise CheckpointError("C441", checkpoint.name, what, next_step=step) from fault


def from_command(ask: Ask, options: Options) -> dict[str, Record]:
    network = _named(ask, options.model)
    with ask.pictures() as whole:
        folder = whole.subset(range(0, len(whole), options.every))
        run = ask.run("looking at epochs")
        features, layers = evolution(
            options.checkpoints, folder, network, **arguments(options, run)
        )
    return {"features": features, "convergence": layers}


def _named(ask: Ask, model: str | None) -> Network | None:
    if model is None:
        if any(told is not None for told in ask.told.values()):
            what = "say something of a network that is not named"
            raise UsageError("U233", "options", what, next_step="name it with --model")
        return None
    network = load(model, **ask.told)
    for note in network.notes:
        if not note.startswith("the weights are random"):
            ask.say(note)
    return network
