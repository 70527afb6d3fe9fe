"""One run, from top to bottom."""

import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from tqdm import tqdm

from vae_exp import build, checkpoint, files, memory, narration, pictures, resume, speed, stopping
from vae_exp.datasets import batches
from vae_exp.divergence import check_weights, finite
from vae_exp.metrics import evaluate
from vae_exp.objectives import Progress, elbo_terms, more_draws
from vae_exp.online import choose_mode
from vae_exp.prepare import is_grey
from vae_exp.running_means import RunningMeans
from vae_exp.symptoms import Symptoms
from vae_exp.tracker import Tracker

log = logging.getLogger(__name__)


def train(cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
    """Train the VAE that cfg describes and return what run_dir/summary.json then holds.

    With cfg.resume it goes on from the last checkpoint in run_dir. Every number is in nats per image. Raises
    UserError before anything is read or opened where cfg asks for something impossible, where run_dir belongs to
    another process, the disk is full or the memory too small, and Diverged where a number stops being finite.
    """
    config = build.check(cfg)
    with memory.explained(config), speed.without_subnormals():
        return _train(config, run_dir)


def _train(config: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    device = build.device(config["device"])
    before = resume.load(run_dir, config) if config["resume"] else None
    mode = choose_mode(config["wandb"]["mode"])
    seed, epochs, batch_size = config["seed"], config["epochs"], config["batch_size"]
    patience = config["early_stopping"]["patience"]

    # Data: as bytes, whole on the training device where it is small enough. Without a validation split the test
    # split is watched, as in the tutorial; then no epoch is chosen as the best, and best.pt is the last.
    data = build.dataset(config)
    build.check_labels(config, data)
    train_split = data.train.to(device)
    held_out, chooses = ("val", True) if len(data.val) else ("test", False)
    held_out_split = (data.val if chooses else data.read_test()).to(device)
    steps_per_epoch = math.ceil(len(train_split) / batch_size)

    # Model: seeded just before it is built, so that its first weights depend on the seed alone.
    memory.check_model(config, data.x_shape, data.n_classes, device)
    torch.manual_seed(seed)
    model = build.model(config, data.x_shape, data.n_classes).to(device)
    optimizer = build.optimizer(config, model)
    objective, schedule = build.partial(config, "objective"), build.partial(config, "scheduler")
    order, noise = build.generator(seed, "order"), build.generator(seed, "noise", device)
    draws = build.generator(seed, "images", device)  # of flips and of pixels that are binarised anew
    streams = {"order": order, "noise": noise, "draws": draws}

    facts = {
        "parameters": sum(weights.numel() for weights in model.parameters()),
        "train_size": len(data.train),
        "val_size": len(data.val),
        "x_shape": list(data.x_shape),
        "trained_on": str(device),
    }
    narration.introduce(config, facts, run_dir)
    if config["likelihood"]["_target_"].endswith(".bernoulli") and is_grey(data.train):
        log.warning(narration.GREY)
    # Where the run stands: at its beginning, or where its last checkpoint left it.
    means, symptoms = RunningMeans(), Symptoms(config, len(data.train))
    step, epochs_done, best, kl_per_dim = 0, 0, {}, [0.0] * model.z_dim
    if before:
        resume.restore(before, facts, model, optimizer, streams, means)
        step, epochs_done, best, kl_per_dim = (before[name] for name in ("step", "epoch", "best", "kl_per_dim"))
    clock = stopping.Clock(config, before["resume"] if before else {})
    order_began = order.get_state()

    precision = speed.autocast(config["precision"], device)

    def loss_of(x: Tensor, y: Tensor, eps: Tensor, now: Progress) -> tuple[Tensor, dict[str, Tensor | float]]:
        """One draw z ~ q(z|x, y) for each image, from noise eps [B, Z]: the loss, and what is logged of it."""
        with precision:
            q = model.encode(x, y)
            z = q.rsample(eps)
            p = model.decode(z, y)
            terms = elbo_terms(x, q, p, z, more=partial(more_draws, model, x, y, q, noise))
            loss, logged = objective(terms, now)
        means = {"loss": loss, "reconstruction": terms.reconstruction.mean(), "kl": terms.kl.sum(1).mean(), **logged}
        return loss, {name: mean.detach() if isinstance(mean, Tensor) else mean for name, mean in means.items()}

    def save(*names: str) -> None:
        """All that the run is at this moment, the order of its images as at the beginning of the epoch."""
        check_weights(model, step, run_dir)
        state = {
            "config": config,
            "x_shape": list(data.x_shape),
            "n_classes": data.n_classes,
            "class_names": data.class_names,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "epoch": epochs_done,
            "best": best,
            "kl_per_dim": kl_per_dim,  # the order of the latents in a traversal
            "resume": {
                "facts": facts,
                "streams": resume.states(streams) | {"order": order_began},
                "means": means.state(),
                **clock.state(),
                **tracker.state(),
            },
        }
        checkpoint.save(*(run_dir / name for name in names), **state)
        if "last.pt" in names:
            clock.saved()

    bar = tqdm(total=epochs * steps_per_epoch, initial=step, unit="step", disable=None, leave=False, dynamic_ncols=True)
    with (
        files.only_process(run_dir),
        stopping.signals() as signals,
        Tracker(config, run_dir, mode, facts, before) as tracker,
        bar,
    ):
        if best:
            tracker.summarise(best)
        fast = speed.compiled(
            loss_of, config["compile"], device, epochs * steps_per_epoch, interrupted=signals.raise_if_caught
        )
        ended = None  # the reason to end before the last epoch
        for epoch in range(epochs_done + 1 if before else min(1, epochs), epochs + 1):  # 0: the model as it is built
            ended = clock.is_over() or stopping.is_patience_over(patience, epochs_done, best)
            if ended:
                break
            clock.epoch_begins()
            batches_done = step - epochs_done * steps_per_epoch  # before the run was interrupted in this epoch
            for x, y in batches(train_split, batch_size, order, draws, batches_done) if epoch else ():
                now = Progress(step, steps_per_epoch, epochs, len(train_split))
                lr = config["optimizer"]["lr"] * schedule(now.epoch, epochs)
                for group in optimizer.param_groups:
                    group["lr"] = lr

                eps = torch.randn(len(x), model.z_dim, generator=noise, device=device)
                # The last batch of an epoch is smaller: compiling it too would cost as much again.
                loss, measured = (fast if len(x) == batch_size else loss_of)(x, y, eps, now)
                model.zero_grad()
                loss.backward()
                step += 1
                logs = step % config["log_every_steps"] == 0 or step % steps_per_epoch == 0
                if logs:  # of this step alone: every step's would cost a thirtieth of the tutorial's time
                    grad_norm = nn.utils.get_total_norm(
                        [weights.grad for weights in model.parameters() if weights.grad is not None]
                    )
                optimizer.step()

                bar.update()
                means.add(len(x), lr=lr, **measured)
                if logs:
                    point = means.read("train") | {"train/grad_norm": grad_norm.item()}
                    finite(point, f"between steps {means.first_step} and {step}", run_dir)
                    bar.set_postfix_str(f"neg_elbo {point['train/neg_elbo']:.2f}", refresh=False)
                    tracker.log(point | {"epoch": step / steps_per_epoch, "images_seen": means.images_seen}, step)
                inside = step % steps_per_epoch != 0  # else the end of the epoch, below, does the same
                if signals.caught or (inside and (clock.save_is_due(step) or clock.is_over())):
                    finite(means.peek("train"), f"between steps {means.first_step} and {step}", run_dir)
                    save("last.pt")
                    signals.raise_if_caught()
                    if ended := clock.is_over():
                        break
            if ended:
                break

            # The epoch is over: measure, draw, save.
            row: dict[str, Any] = {"epoch": epoch}
            if epoch:
                seconds = clock.epoch_seconds
                row |= means.read_epoch("train_epoch")
                row |= {"time/epoch_seconds": seconds, "time/images_per_second": len(train_split) / seconds}
            measured = evaluate(model, held_out_split, build.generator(seed, "evaluation"))
            row |= finite(measured.scalars(held_out), f"after step {step}", run_dir)
            tracker.log(row | {f"{held_out}/kl_per_dim": measured.kl_per_dim}, step)
            for picture in pictures.after_epoch(
                config, model, held_out_split, held_out, measured, data.class_names, epoch
            ):
                tracker.image(*picture, step)

            improved = not chooses or not best or measured.neg_elbo < best["best/val_neg_elbo"]
            if improved:
                best = {"best/epoch": epoch, "best/step": step}
                if chooses:
                    best |= {f"best/{k.replace('/', '_')}": value for k, value in measured.scalars("val").items()}
            epochs_done, kl_per_dim, order_began = epoch, measured.kl_per_dim, order.get_state()
            clock.epoch_begins()
            if improved:
                tracker.summarise(best)
            due = epoch == epochs or signals.caught or clock.save_is_due_after(epoch, step)
            # best.pt before last.pt, which says that it is there.
            if improved or due:
                save(*(["best.pt"] if improved else []), *(["last.pt"] if due else []))
            log.info(narration.epoch_line(epoch, epochs, held_out, row, improved and chooses))
            for warning in symptoms.look(epoch, row, held_out):
                log.warning(warning)
            if signals.caught and not due:  # since that was decided
                save("last.pt")
            signals.raise_if_caught()

        # The end: the test split, read only now, with the weights of the best epoch.
        if ended:
            log.info(f"ends early: {ended}")
            save("last.pt")
        if not best:  # not even one epoch: the weights as they are
            best = {"best/epoch": 0, "best/step": step}
            save("best.pt")
        signals.all_is_saved = True
        signals.raise_if_caught()
        test_split = data.read_test().to(device) if chooses else held_out_split
        model.load_state_dict(checkpoint.load(run_dir / "best.pt", device)["model"])
        measured = evaluate(model, test_split, build.generator(seed, "evaluation"))
        tracker.image(*pictures.of_test(model, test_split, seed, best["best/epoch"]), step)
        tracker.summarise(best | measured.scalars("test"))
        if config["wandb"]["log_checkpoints"]:
            if best["best/step"] != step:
                tracker.upload(run_dir / "best.pt", ["best"])
            tracker.upload(run_dir / "last.pt", ["last"] if best["best/step"] != step else ["best", "last"])
        tracker.summary["reason"] = ended
    return tracker.summary
