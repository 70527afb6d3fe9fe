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

from vae_exp import shares, together
from vae_exp.config import build, devices, own_code
from vae_exp.config.check import CALLS
from vae_exp.config.keys import Config, images_per_step
from vae_exp.datasets import Split, batches
from vae_exp.figures import during_training
from vae_exp.metrics import evaluate, noise_of, of_factors, scores_warning, told_by_means
from vae_exp.run import (
    console,
    cores,
    earlier,
    memory,
    restoring,
    resume,
    speed,
    stored_data,
    suiting,
    threads,
    trial,
)
from vae_exp.run.ema import EMA
from vae_exp.run.divergence import clip_gradient, gradient_norm, require_finite
from vae_exp.run.folder import only_process, require_writable
from vae_exp.run.health import Health
from vae_exp.run.running_means import RunningMeans
from vae_exp.run.saving import Saves
from vae_exp.run.standing import Best, Facts, Standing, Streams, Training
from vae_exp.run.stopping import Watch
from vae_exp.terms import Logged, Progress, one_draw
from vae_exp.tracking.tracker import Tracker
from vae_exp.tracking.wandb_server import choose_mode

log = logging.getLogger(__name__)
Judge = Callable[[int, dict[str, float]], str | None]  # after an epoch, with its val/* or test/*: the reason to end


def train(cfg: DictConfig, run_dir: str | Path, judge: Judge | None = None) -> dict[str, Any]:
    """Train the VAE that cfg describes and return what run_dir/summary.json then holds.

    With cfg.resume it goes on from the last checkpoint in run_dir; with cfg.replace a run that lies there goes. A run
    that `judge` ends early is pruned. Every number is in nats per image. Raises UserError before anything is read or
    opened where cfg asks for something impossible, where run_dir holds a run, belongs to another process or cannot be
    written, the disk is full or the memory too small, and Diverged where a number stops being finite. In each of the
    processes that torchrun starts for a run it is called alike; what the first of them is given counts.
    """
    with together.joined():
        config, run_dir = together.from_first(lambda: (build.check(cfg), Path(run_dir)))
        config["devices"] = devices.agreed(config)
        device = devices.device(config["device"])
        if device.index is not None:  # one GPU of several: what is not told where to be is there too
            torch.cuda.set_device(device)
        speed.check(config["precision"], config["compile"], device)
        if together.is_first():
            if not config["resume"]:
                earlier.require_unused(run_dir, config["replace"])
            require_writable(run_dir)
        if together.size() > 1:
            threads.share(together.of_all(cores.place()).count(cores.place()), "processes")
        with memory.explained(config), speed.without_subnormals(), speed.repeatable(device), threads.kept():
            return _train(config, run_dir, device, judge or (lambda epoch, scores: None))


def _train(config: Config, run_dir: Path, device: torch.device, judge: Judge) -> dict[str, Any]:
    seed, epochs, batch_size = config["seed"], config["epochs"], config["batch_size"]
    step_size, clip_norm = images_per_step(config), config["gradient_clip_norm"]
    scores_every = config["scores_every_epochs"]
    before = together.from_first(lambda: resume.load(run_dir, config) if config["resume"] else None)
    began = before.goes_on.facts if before and before.goes_on else None
    if before:  # each process has its own modules
        if config["trust"]:
            own_code.find(config, CALLS, before.code)
        else:
            own_code.compare(config, before.code)
    old_log_bytes = earlier.log_bytes(run_dir)  # of a run whose place this one takes
    wandb_mode = together.of_first(choose_mode, config["wandb"]["mode"])

    # Data: as bytes, whole on the training device where it is small enough. Without a validation split the test
    # split is watched, as in the tutorial; then no epoch is chosen as the best, and best.pt is the last.
    with together.first_goes_first():
        data = stored_data.read_to_resume(before, run_dir, config["dataset"]) if before else build.dataset(config)
    held_out, chooses = ("val", True) if len(data.val) else ("test", False)
    train_split, held_out_split = data.train.to(device), data.split(held_out).to(device)
    suiting.check(config, data, held_out, held_out_split)
    steps_per_epoch = math.ceil(len(train_split) / step_size)

    # Model: seeded just before it is built, so that its first weights depend on the seed alone.
    memory.check_model(config, data.x_shape, data.n_classes, device)
    torch.manual_seed(seed)
    model = build.model(config, data.x_shape, data.n_classes, data.train).to(device)
    optimizer, average = build.optimizer(config, model), EMA(model, config["ema"])
    objective, schedule = build.partial(config, "objective"), build.partial(config, "scheduler")
    operations = threads.PASSES * batch_size * trial.check(config, model, objective, train_split)
    same_processes = before is not None and before.config["devices"] == config["devices"]
    threads.choose(config["threads"], began.threads if began and same_processes else None, operations, device)
    precision = speed.autocast(config["precision"], device)

    def loss_of(now: Progress, x: Tensor, y: Tensor, eps: Tensor) -> tuple[Tensor, Logged]:
        with precision:
            return one_draw(model, objective, x, y, eps, now, streams.noise)

    # Where the run stands: at its beginning, or where its last checkpoint left it.
    streams, watch = Streams.of(seed, device), Watch(config, before)
    was_compiled = began.compiled if began else None
    fast = speed.compile_step(loss_of, config["compile"], was_compiled, device, watch.raise_if_told)
    means, facts = RunningMeans(), Facts.of(model, data, device, compiled=fast is not loss_of)
    stands, health = (
        Standing([0.0] * config["model"]["z_dim"], streams.order.get_state()),
        Health(config, facts.train_size),
    )
    eval_noise = noise_of(held_out_split, config["model"]["z_dim"], build.generator(seed, "evaluation"))
    pictures = together.of_first(during_training.Pictures, config["figure_every_epochs"])
    training = Training(config, data, facts, model, average.model, optimizer, streams, means, stands)
    if before:
        restoring.restore(before, training)
    shares.take_weights(model, average.model)
    together.seed_layers(seed + stands.step)
    console.introduce(config, facts, run_dir, grey=average.model.support == "binary" and data.train.is_grey())
    last_step = min(epochs * steps_per_epoch, config["max_steps"] or 2**31)
    with (
        together.of_first(only_process, run_dir),
        watch,
        together.of_first(Tracker, config, run_dir, wandb_mode, facts, before, old_log_bytes) as tracker,
        together.of_first(Saves, run_dir, training, watch, tracker.position, tracker.to_disk, before) as saves,
        together.of_first(console.progress_bar, last_step, stands.step) as bar,
    ):
        why_over = None  # the reason to end before the last epoch
        for epoch in range(stands.epoch + 1 if before else min(1, epochs), epochs + 1):  # 0: the model as it is built
            if why_over := watch.why_over(stands):
                break
            watch.epoch_begins()
            steps_done = stands.step - stands.epoch * steps_per_epoch  # before the run was interrupted in this epoch
            for x, y in batches(train_split, step_size, streams.order, streams.draws, steps_done) if epoch else ():
                now = Progress(stands.step, steps_per_epoch, epochs, facts.train_size)
                lr = config["optimizer"]["lr"] * schedule(now.epoch, epochs)
                for group in optimizer.param_groups:
                    group["lr"] = lr

                eps = torch.randn(len(x), model.z_dim, generator=streams.noise, device=device)
                model.zero_grad()
                seen = []
                for batch in zip(*[part.split(batch_size) for part in (x, y, eps)], strict=True):
                    size = len(batch[0])
                    # The last batch of an epoch is smaller: compiling it too would cost as much again.
                    loss, terms = (fast if size == batch_size else loss_of)(now, *batch)
                    loss.backward(torch.full_like(loss, size / len(x)))  # the gradients of several batches add up
                    seen.append((size, terms))
                shares.add_up(model)
                stands.step += 1
                last_of_epoch = stands.step % steps_per_epoch == 0
                logs = last_of_epoch or stands.step % config["log_every_steps"] == 0
                if logs or clip_norm:  # of this step alone: every step's would cost a thirtieth of the tutorial's time
                    grad_norm = gradient_norm(model)
                if clip_norm:
                    clip_gradient(model, grad_norm, clip_norm)
                optimizer.step()
                average.after_step(stands.step)

                bar.update()
                means.add(seen, lr=lr)
                if logs:
                    point = means.read("train", grad_norm=grad_norm, **model.scale())
                    require_finite(point, means.span, run_dir)
                    bar.set_postfix_str(f"neg_elbo {point['train/neg_elbo']:.2f}", refresh=False)
                    point |= {"epoch": stands.step / steps_per_epoch, "images_seen": means.images_seen}
                    tracker.log(point, stands.step)
                if watch.must_save(stands.step, last_of_epoch):
                    saves.write()
                    watch.raise_if_caught()
                    if why_over := watch.why_over(stands):
                        break
            if why_over:
                break

            # The epoch is over: measure, draw, save.
            row: dict[str, Any] = {"epoch": epoch}
            if epoch:
                row |= means.read_epoch("train_epoch") | watch.times(len(train_split))
            measured = evaluate(average.model, held_out_split, eval_noise, shared=True)
            row |= measured.scalars(held_out)
            if together.is_first() and scores_every and epoch % scores_every == 0:
                row |= of_factors(measured, held_out_split, config["scores"], held_out, config["model"]["conditional"])
            require_finite(measured.scalars(held_out), f"after step {stands.step}", run_dir)
            tracker.log(row | {f"{held_out}/kl_per_dim": measured.kl_per_dim}, stands.step)
            scores = measured.scalars("val") if chooses else None
            scale = {name: value.item() for name, value in average.model.scale().items()}
            new_best = stands.end_epoch(epoch, measured.kl_per_dim, streams.order.get_state(), scores, scale)
            is_last = epoch == epochs or watch.why_over(stands) is not None
            for picture in pictures.after_epoch(training, held_out_split, held_out, measured, is_last):
                tracker.image(*picture, stands.step)
            watch.epoch_begins()
            if new_best:
                saves.hold_best()
                tracker.summarise(new_best.summary())
            is_best = chooses and new_best is not None
            log.info(console.epoch_line(epoch, epochs, held_out, row, scale, is_best))
            for warning in health.warnings(epoch, row, held_out):
                log.warning(warning)
            if watch.must_save_after(epoch, stands.step):
                saves.write()
                watch.raise_if_caught()
            if why_over := together.from_first(partial(judge, epoch, measured.scalars(held_out))):
                tracker.ends_as = "pruned"
                break

        # The end: the test split, read only now, with the weights of the best epoch.
        if why_over:
            log.info(f"ends early: {why_over}")
            saves.write()
        if not stands.best:  # not even one epoch: the weights as they are
            stands.best = Best(0, stands.step)
            saves.hold_best()
        saves.write_best()
        watch.all_is_saved()
        _test(training, saves, data.read_test().to(device) if chooses else held_out_split, tracker)
        tracker.summary.reason = why_over
    return together.from_first(tracker.summary.as_dict)


def _test(training: Training, saves: Saves, test_split: Split, tracker: Tracker) -> None:
    """Measure and picture the test split with the weights of the best epoch; upload them where that is asked for."""
    seed, step, model = training.config["seed"], training.stands.step, training.averaged
    weights, best = together.from_first(saves.best)
    model.load_state_dict(weights)
    measured = evaluate(model, test_split, build.generator(seed, "evaluation"), shared=True)
    if not together.is_first():
        return
    tracker.image(*during_training.of_test(model, test_split, seed, best.epoch), step)
    conditional = training.config["model"]["conditional"]
    scores = of_factors(measured, test_split, training.config["scores"], "test", conditional)
    if scores:
        factors = test_split.unknown_factors(conditional)
        if warning := scores_warning(measured, told_by_means(measured, factors), factors):
            log.warning(f"scores: {warning}")
    tracker.summarise(best.summary() | measured.scalars("test") | scores)
    if training.config["wandb"]["log_checkpoints"]:
        tracker.upload_checkpoints(best_is_last=best.step == step)
