"""One run, from top to bottom."""

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from vae_exp import distributed
from vae_exp.config import build, targets
from vae_exp.config.checks import CALLS
from vae_exp.config.schema import Config, images_per_step
from vae_exp.datasets import Split, batches
from vae_exp.evaluation.metrics import evaluate, factor_scores, sample_eps, scores_warning, told_by_means
from vae_exp.figures.training import TrainingFigures, test_figure
from vae_exp.terms import Logged, Progress, compute_loss
from vae_exp.tracking.tracker import Tracker
from vae_exp.tracking.wandb_run import choose_mode
from vae_exp.training import console, cores, dry_run, precision, restore, resume, threads
from vae_exp.training.checkpointer import Checkpointer
from vae_exp.training.console import Health
from vae_exp.training.run_dir import lock_folder, log_bytes, require_unused, require_writable
from vae_exp.training.state import EMA, Best, Meters, RngStreams, RunInfo, TrainingRun, TrainState
from vae_exp.training.stopper import Stopper, clip_gradient, gradient_norm, require_finite

log = logging.getLogger(__name__)
Judge = Callable[[int, dict[str, float]], str | None]  # after an epoch, with its val/* or test/*: the reason to end


def train(cfg: DictConfig, run_dir: str | Path, prune: Judge | None = None) -> dict[str, Any]:
    """Train the VAE that cfg describes and return what run_dir/summary.json then holds.

    With cfg.resume it continues from the last checkpoint in run_dir; with cfg.replace a run in run_dir is deleted. A
    run that `prune` ends early is pruned. Every number is in nats per image. Raises UserError before anything is read
    or opened if cfg asks for something impossible, if run_dir holds a run, belongs to another process or cannot be
    written, the disk is full or the memory too small, and Diverged if a number stops being finite. All processes that
    torchrun starts for a run call it in the same way; the arguments of the first one count.
    """
    with distributed.process_group():
        config, run_dir = distributed.broadcast(lambda: (build.check(cfg), Path(run_dir)))
        config["devices"] = build.agreed(config)
        device = build.device(config["device"])
        if device.index is not None:  # one GPU of several: what is not told where to be is there too
            torch.cuda.set_device(device)
        precision.check(config["precision"], config["compile"], device)
        if distributed.is_rank0():
            if not config["resume"]:
                require_unused(run_dir, config["replace"])
            require_writable(run_dir)
        if distributed.world_size() > 1:
            threads.share(distributed.all_gather(cores.place()).count(cores.place()), "processes")
        with (
            dry_run.explain_out_of_memory(config),
            precision.flush_denormals(),
            precision.deterministic(device),
            threads.kept(),
        ):
            return _train(config, run_dir, device, prune or (lambda epoch, scores: None))


def _train(config: Config, run_dir: Path, device: torch.device, prune: Judge) -> dict[str, Any]:
    seed, epochs, batch_size = config["seed"], config["epochs"], config["batch_size"]
    step_size, clip_norm = images_per_step(config), config["gradient_clip_norm"]
    scores_every = config["scores_every_epochs"]
    before = distributed.broadcast(lambda: resume.load(run_dir, config) if config["resume"] else None)
    info_before = before.goes_on.facts if before and before.goes_on else None
    if before:  # each process has its own modules
        if config["trust"]:
            targets.find(config, CALLS, before.code)
        else:
            targets.compare(config, before.code)
    old_log_bytes = log_bytes(run_dir)  # of a run whose place this one takes
    wandb_mode = distributed.rank0_only(choose_mode, config["wandb"]["mode"])

    # Data: as bytes, whole on the training device where it is small enough. Without a validation split the test
    # split is watched, as in the tutorial; then no epoch is chosen as the best, and best.pt is the last.
    with distributed.rank0_first():
        data = restore.read_to_resume(before, run_dir, config["dataset"]) if before else build.dataset(config)
    split_name, has_val = ("val", True) if len(data.val) else ("test", False)
    train_split, held_out_split = data.train.to(device), data.split(split_name).to(device)
    dry_run.check_data(config, data, split_name, held_out_split)
    steps_per_epoch = math.ceil(len(train_split) / step_size)

    # Model: seeded just before it is built, so that its first weights depend on the seed alone.
    dry_run.check_model(config, data.x_shape, data.n_classes, device)
    torch.manual_seed(seed)
    model = build.model(config, data.x_shape, data.n_classes, data.train).to(device)
    optimizer, ema = build.optimizer(config, model), EMA(model, config["ema"])
    objective, schedule = build.partial(config, "objective"), build.partial(config, "scheduler")
    operations = threads.PASSES * batch_size * dry_run.check_own_parts(config, model, objective, train_split)
    same_processes = before is not None and before.config["devices"] == config["devices"]
    threads.choose(
        config["threads"], info_before.threads if info_before and same_processes else None, operations, device
    )
    autocast = precision.autocast(config["precision"], device)

    def loss_of(now: Progress, x: Tensor, y: Tensor, eps: Tensor) -> tuple[Tensor, Logged]:
        with autocast:
            return compute_loss(model, objective, x, y, eps, now, rng.noise)

    # Where the run stands: at its beginning, or where its last checkpoint left it.
    rng, stopper = RngStreams.of(seed, device), Stopper(config, before)
    was_compiled = info_before.compiled if info_before else None
    compiled = precision.compile_step(loss_of, config["compile"], was_compiled, device, stopper.raise_if_interrupted)
    meters, info = Meters(), RunInfo.of(model, data, device, compiled=compiled is not loss_of)
    state, health = (
        TrainState([0.0] * config["model"]["z_dim"], rng.order.get_state()),
        Health(config, info.train_size),
    )
    eval_noise = sample_eps(held_out_split, config["model"]["z_dim"], build.generator(seed, "evaluation"))
    figures = distributed.rank0_only(TrainingFigures, config["figure_every_epochs"])
    run = TrainingRun(config, data, info, model, ema.model, optimizer, rng, meters, state)
    if before:
        restore.restore(before, run)
    distributed.broadcast_weights(model, ema.model)
    distributed.seed_layers(seed + state.step)
    console.introduce(config, info, run_dir, grey=ema.model.support == "binary" and data.train.is_grey())
    last_step = min(epochs * steps_per_epoch, config["max_steps"] or 2**31)
    with (
        distributed.rank0_only(lock_folder, run_dir),
        stopper,
        distributed.rank0_only(Tracker, config, run_dir, wandb_mode, info, before, old_log_bytes) as tracker,
        distributed.rank0_only(
            Checkpointer, run_dir, run, stopper, tracker.position, tracker.to_disk, before
        ) as checkpoints,
        distributed.rank0_only(console.progress_bar, last_step, state.step) as bar,
    ):
        stop_reason = None  # the reason to end before the last epoch
        for epoch in range(state.epoch + 1 if before else min(1, epochs), epochs + 1):  # 0: the model as it is built
            if stop_reason := stopper.stop_reason(state):
                break
            stopper.start_epoch()
            steps_done = state.step - state.epoch * steps_per_epoch  # before the run was interrupted in this epoch
            for x, y in batches(train_split, step_size, rng.order, rng.draws, steps_done) if epoch else ():
                now = Progress(state.step, steps_per_epoch, epochs, info.train_size)
                lr = config["optimizer"]["lr"] * schedule(now.epoch, epochs)
                for group in optimizer.param_groups:
                    group["lr"] = lr

                eps = torch.randn(len(x), model.z_dim, generator=rng.noise, device=device)
                model.zero_grad()
                logs_of_batches = []
                for batch in zip(*[part.split(batch_size) for part in (x, y, eps)], strict=True):
                    size = len(batch[0])
                    # The last batch of an epoch is smaller: compiling it too would cost as much again.
                    loss, terms = (compiled if size == batch_size else loss_of)(now, *batch)
                    loss.backward(torch.full_like(loss, size / len(x)))  # the gradients of several batches add up
                    logs_of_batches.append((size, terms))
                distributed.all_reduce_gradients(model)
                state.step += 1
                last_of_epoch = state.step % steps_per_epoch == 0
                logs = last_of_epoch or state.step % config["log_every_steps"] == 0
                if logs or clip_norm:  # of this step alone: every step's would cost a thirtieth of the tutorial's time
                    grad_norm = gradient_norm(model)
                if clip_norm:
                    clip_gradient(model, grad_norm, clip_norm)
                optimizer.step()
                ema.after_step(state.step)

                bar.update()
                meters.add(logs_of_batches, lr=lr)
                if logs:
                    point = meters.read("train", grad_norm=grad_norm, **model.scale())
                    require_finite(point, meters.span, run_dir)
                    bar.set_postfix_str(f"neg_elbo {point['train/neg_elbo']:.2f}", refresh=False)
                    point |= {"epoch": state.step / steps_per_epoch, "images_seen": meters.images_seen}
                    tracker.log(point, state.step)
                if stopper.due_after_step(state.step, last_of_epoch):
                    checkpoints.write()
                    stopper.raise_if_signalled()
                    if stop_reason := stopper.stop_reason(state):
                        break
            if stop_reason:
                break

            # The epoch is over: measure, draw, save.
            row: dict[str, Any] = {"epoch": epoch}
            if epoch:
                row |= meters.read_epoch("train_epoch") | stopper.times(len(train_split))
            evaluation = evaluate(ema.model, held_out_split, eval_noise, shared=True)
            row |= evaluation.scalars(split_name)
            if distributed.is_rank0() and scores_every and epoch % scores_every == 0:
                row |= factor_scores(
                    evaluation, held_out_split, config["scores"], split_name, config["model"]["conditional"]
                )
            require_finite(evaluation.scalars(split_name), f"after step {state.step}", run_dir)
            tracker.log(row | {f"{split_name}/kl_per_dim": evaluation.kl_per_dim}, state.step)
            scores = evaluation.scalars("val") if has_val else None
            scale = {name: value.item() for name, value in ema.model.scale().items()}
            new_best = state.end_epoch(epoch, evaluation.kl_per_dim, rng.order.get_state(), scores, scale)
            is_last = epoch == epochs or stopper.stop_reason(state) is not None
            for figure in figures.after_epoch(run, held_out_split, split_name, evaluation, is_last):
                tracker.image(*figure, state.step)
            stopper.start_epoch()
            if new_best:
                checkpoints.keep_best()
                tracker.summarise(new_best.summary())
            is_best = has_val and new_best is not None
            log.info(console.epoch_line(epoch, epochs, split_name, row, scale, is_best))
            for warning in health.warnings(epoch, row, split_name):
                log.warning(warning)
            if stopper.due_after_epoch(epoch, state.step):
                checkpoints.write()
                stopper.raise_if_signalled()
            if stop_reason := distributed.broadcast(partial(prune, epoch, evaluation.scalars(split_name))):
                tracker.ends_as = "pruned"
                break

        # The end: the test split, read only now, with the weights of the best epoch.
        if stop_reason:
            log.info(f"ends early: {stop_reason}")
            checkpoints.write()
        if not state.best:  # not even one epoch: the weights as they are
            state.best = Best(0, state.step)
            checkpoints.keep_best()
        checkpoints.write_best()
        stopper.finish()
        _test(run, checkpoints, data.read_test().to(device) if has_val else held_out_split, tracker)
        tracker.summary.reason = stop_reason
    return distributed.broadcast(tracker.summary.as_dict)


def _test(run: TrainingRun, checkpoints: Checkpointer, test_split: Split, tracker: Tracker) -> None:
    """Measure and picture the test split with the weights of the best epoch; upload the weights if asked for."""
    seed, step, model = run.config["seed"], run.state.step, run.eval_model
    weights, best = distributed.broadcast(checkpoints.best)
    model.load_state_dict(weights)
    evaluation = evaluate(model, test_split, build.generator(seed, "evaluation"), shared=True)
    if not distributed.is_rank0():
        return
    tracker.image(*test_figure(model, test_split, seed, best.epoch), step)
    conditional = run.config["model"]["conditional"]
    scores = factor_scores(evaluation, test_split, run.config["scores"], "test", conditional)
    if scores:
        factors = test_split.unknown_factors(conditional)
        if warning := scores_warning(evaluation, told_by_means(evaluation, factors), factors):
            log.warning(f"scores: {warning}")
    tracker.summarise(best.summary() | evaluation.scalars("test") | scores)
    if run.config["wandb"]["log_checkpoints"]:
        tracker.upload_checkpoints(best_is_last=best.step == step)
