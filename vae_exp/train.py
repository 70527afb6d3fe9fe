"""One run, from top to bottom: setup, epochs of steps, and the test split at the end. Numbers are nats per image."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from vae_exp import distributed
from vae_exp.config import build
from vae_exp.evaluation.metrics import evaluate, factor_scores, sample_eps
from vae_exp.figures.training import TrainingFigures, test_figure
from vae_exp.files import use_surroundings
from vae_exp.terms import Progress, compute_loss
from vae_exp.training import console, dry_run, init_from, precision, restore, threads
from vae_exp.training.checkpoints import Checkpoint
from vae_exp.training.optimizer import step_of
from vae_exp.training.run import Prune, Run, new_run
from vae_exp.training.state import EMA, RunInfo
from vae_exp.training.stopper import Stopper, gradient_norm, require_finite

log = logging.getLogger(__name__)


def train(
    cfg: DictConfig, run_dir: str | Path | None = None, prune: Prune | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Train the VAE that cfg describes and return what run_dir/summary.json then holds.

    With cfg.resume it goes on from the last checkpoint in run_dir, by default the folder that cfg.resume names; with
    cfg.replace a run there is deleted. It prints a line an epoch and a progress bar, unless it should be quiet. Raises
    UserError before anything is opened if cfg asks for the impossible or run_dir cannot be used, and Diverged if a
    number stops being finite. All processes that torchrun starts for a run call it; the arguments of rank 0 count.
    """
    run_dir = cfg.get("resume") if run_dir is None else run_dir
    use_surroundings()
    with distributed.process_group(), distributed.rank0_only(console.printing, run_dir, quiet):
        run = new_run(cfg, run_dir)
        with dry_run.explain_out_of_memory(run.config), precision.reproducible(run.device), threads.restored():
            run.resumed = restore.load(run.run_dir, run.config)
            source = distributed.broadcast(lambda: init_from.read(run.config))
            setup(run, source)
            with run.open(quiet):
                while not run.stop.ends_with(run.state):
                    if train_epoch(run):
                        finish_epoch(run, prune)
                test(run)
            return distributed.broadcast(run.tracker.summary.as_dict)


def setup(run: Run, source: Checkpoint | None) -> None:
    """Build data, model, optimizer and random streams, as the seed has them or as the last checkpoint left them.

    The weights of a new run may be those of a trained model, the source.
    """
    config, device, resumed = run.config, run.device, run.resumed
    seed = config["seed"]

    # Data: as bytes, whole on the training device where it is small enough.
    with distributed.rank0_first():
        data = restore.read_data(resumed, run.run_dir, config["dataset"]) if resumed else build.dataset(config)
    run.data, run.held_out_name = data, "val" if len(data.val) else "test"
    run.train_split, run.held_out = data.train.to(device), data.split(run.held_out_name).to(device)
    dry_run.check_data(config, data, run.held_out_name, run.held_out)

    # Model: seeded just before it is built, so that its first weights depend on the seed alone.
    dry_run.check_model(config, data, device)
    torch.manual_seed(seed)
    run.model = model = build.model(config, data.x_shape, data.n_classes, data.train, data.conditions).to(device)
    make = partial(build.model_of, config, data)
    start = init_from.initialise(model, source, config, make) if source else None
    model.freeze(config["freeze"])
    run.optimizer, run.ema = build.optimizer(config, model), EMA(model, config["ema"])
    run.weights, run.optimizer_step = list(model.parameters()), step_of(run.optimizer)
    objective, run.schedule = build.partial(config, "objective"), build.partial(config, "scheduler")
    run.stop = Stopper(config, resumed)
    operations = config["batch_size"] * dry_run.check_own_parts(config, model, objective, run.train_split)
    threads.choose(config, resumed, operations, device)
    loss_fn = partial(compute_loss, model, objective, run.rng.noise)
    run.loss_fn = precision.compile_step(loss_fn, config, resumed, device, run.stop.raise_if_interrupted)
    run.autocast = precision.autocast(config["precision"], device)
    run.info = RunInfo.of(model, data, device, run.loss_fn is not loss_fn, start)
    run.eval_noise = sample_eps(run.held_out, model.z_dim, build.generator(seed, "evaluation"))
    run.figures = distributed.rank0_only(TrainingFigures, config["figure_every_epochs"])
    run.health = console.Health(config, run.info.train_size)
    if resumed:
        restore.restore(resumed, run)
    distributed.broadcast_weights(model, run.eval_model)
    distributed.seed_layers(seed + run.state.step)
    console.introduce(config, run.info, run.run_dir, model.support, data.train)


def train_epoch(run: Run) -> bool:
    """Train for what is left of an epoch; return whether it is over, and not ended by a limit or a signal before."""
    state = run.state
    run.stop.start_epoch()
    for x, y in run.batches():
        last_of_epoch = (state.step + 1) % run.steps_per_epoch == 0
        logs = last_of_epoch or (state.step + 1) % run.config["log_every_steps"] == 0
        grad_norm = train_step(run, x, y, logs)
        run.bar.update()
        if grad_norm is not None and logs:
            run.log_step(grad_norm)
        if run.stop.due_after_step(state.step, last_of_epoch):
            run.checkpoints.write()
            run.stop.raise_if_signalled()
            if run.stop.stop_reason(state):
                return False
    return True


def train_step(run: Run, x: Tensor, y: Tensor, logs: bool) -> Tensor | None:
    """Take one optimizer step on x [B, C, H, W] with labels y [B]; return the gradient's norm where it is computed."""
    config, state, model = run.config, run.state, run.model
    now = Progress(state.step, run.steps_per_epoch, config["epochs"], run.info.train_size)
    lr = config["optimizer"]["lr"] * run.schedule(now.epoch, config["epochs"])
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    eps = torch.randn(len(x), model.z_dim, generator=run.rng.noise, device=x.device)

    for weights in run.weights:
        weights.grad = None
    logged = []
    for part in run.parts(x, y, eps):
        with run.autocast:
            loss, terms = run.loss_fn(now, *part)
        share = len(part[0]) / len(x)  # the gradients of several parts add up
        (loss if share == 1 else share * loss).backward()
        logged.append((len(part[0]), terms))
    distributed.all_reduce_gradients(model)

    clip_norm = config["gradient_clip_norm"]
    # Each step's norm would cost a thirtieth of the time.
    grad_norm = gradient_norm(run.weights) if logs or clip_norm else None
    if clip_norm and grad_norm is not None:
        nn.utils.clip_grads_with_norm_(run.weights, clip_norm, grad_norm)  # Pascanu et al. 2013
    run.optimizer_step()
    state.step += 1
    run.ema.update(state.step)
    run.meters.add(logged, lr=lr)
    return grad_norm


def finish_epoch(run: Run, prune: Prune | None) -> None:
    """Measure the held-out split, log, draw, keep the best weights, save when due, and ask whether to go on."""
    config, state, stop, name = run.config, run.state, run.stop, run.held_out_name
    epoch = min(state.epoch + 1, config["epochs"])
    row: dict[str, Any] = {"epoch": epoch}
    if epoch:
        row |= run.meters.read_epoch("train_epoch") | stop.times(len(run.train_split))
    evaluation = evaluate(run.eval_model, run.held_out, run.eval_noise, shared=True)
    scalars = evaluation.scalars(name)
    row |= scalars
    every = config["scores_every_epochs"]
    if distributed.is_rank0() and every and epoch % every == 0:
        row |= factor_scores(evaluation, run.held_out, config, name)
    require_finite(scalars, f"after step {state.step}", run.run_dir)
    kl_per_dim = {f"{name}/kl_per_dim": evaluation.kl_per_dim} if evaluation.kl_per_dim else {}
    run.tracker.log(row | kl_per_dim, state.step)

    scale = {key: value.item() for key, value in run.eval_model.scale().items()}
    new_best = run.end_epoch(epoch, evaluation.kl_per_dim, (scalars if name == "val" else {}) | scale, row)
    for figure in run.figures.after_epoch(run, run.held_out, name, evaluation, is_last=stop.ends_with(state)):
        run.tracker.image(*figure, state.step)
    stop.start_epoch()
    if new_best:
        run.checkpoints.keep_best()
        run.tracker.summarise(new_best.summary())
    is_best = run.monitor is not None and new_best is not None
    log.info(console.epoch_line(epoch, config["epochs"], name, row, scale, is_best))
    for warning in run.health.warnings(epoch, row, name):
        log.warning(warning)
    if stop.due_after_epoch(state):
        run.checkpoints.write()
        stop.raise_if_signalled()
    if reason := distributed.broadcast(lambda: prune(epoch, row) if prune else None):
        stop.reason, run.tracker.ends_as = reason, "pruned"


def test(run: Run) -> None:
    """Save what is not saved; measure and draw the test split, read only now, with the weights of the best epoch."""
    model, step = run.eval_model, run.state.step
    run.save_what_is_left()
    test_split = run.held_out if run.held_out_name == "test" else run.data.read_test().to(run.held_out.y.device)
    weights, best = distributed.broadcast(run.checkpoints.best)
    model.load_state_dict(weights)
    evaluation = evaluate(model, test_split, build.generator(run.config["seed"], "evaluation"), shared=True)
    if distributed.is_rank0():
        drawn = run.tracker.image_path("reconstructions", best.step)  # of the held-out split
        if test_split is not run.held_out or not drawn.exists():
            run.tracker.image(*test_figure(model, test_split, run.config["seed"], best.epoch), step)
        scores = factor_scores(evaluation, test_split, run.config, "test", warn=True)
        run.tracker.summarise(best.summary() | evaluation.scalars("test") | scores | run.path_epochs())
        if run.config["wandb"]["log_checkpoints"]:
            run.tracker.upload_checkpoints(best_is_last=best.step == step)
    run.tracker.summary.reason = run.stop.reason
