"""Generation: fine-tune a causal language model on texts, answers, chats or preferences, and let it write.

python -m recipes.generation --data answers.jsonl --method lora
python -m recipes.generation --data preferences.jsonl --objective dpo --adapter saved_models/generation/RUN
python -m recipes.generation evaluate --model saved_models/generation/RUN --test-data more.jsonl
python -m recipes.generation predict --model saved_models/generation/RUN --prompt "What is a tensor?"
python -m recipes.generation export --model saved_models/generation/RUN --to adapter
"""

import contextlib
import dataclasses
import functools
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..readers.pretrained import Pretrained, library_versions, read_folder
from ..run.command_line import Commands, run_command
from ..run.errors import DataError, UsageError
from ..run.facts import peak_memory
from ..run.fit import Run, prepare
from ..run.flags import check_texts, refuse
from ..run.folder import atomic_folder, check_empty, new_folder, read_flags
from ..run.optimizer_flags import make_optimizer, scaled
from . import examples, language_model, methods, tokens
from .card import card, tabulate_samples
from .examples import Data, Example
from .flags import Evaluate, Export, Predict, Train
from .tokens import Encoded, Tokenizer

SAMPLES, SAMPLE_TOKENS = 3, 48
"""How many texts a run writes at its end, and how long."""


def check(flags: Train) -> None:
    """Checks the flags against each other.

    Raises:
        UsageError: they contradict each other.
    """
    examples.check(flags.data, flags.objective)
    methods.check(flags.tune)
    if flags.objective == "dpo" and not flags.packing:
        raise UsageError("--no-packing has no effect with --objective dpo, which never packs. Leave it out.")
    if flags.objective == "sft" and flags.beta != Train.beta:
        raise UsageError("--beta has no effect without --objective dpo. Leave it out.")
    if flags.run.distribute != "none":
        raise UsageError(f"--distribute {flags.run.distribute}: this recipe trains on one device. Leave it out.")
    if flags.run.early_stopping is not None and not (flags.data.validation_split or flags.data.validation_data):
        raise UsageError("--early-stopping: needs a --validation-split of more than 0 to watch.")


def build(flags: Train, pretrained: Pretrained) -> tuple[Any, Any]:
    """Returns the model that generates text, with its adapter, and the model of the losses around it."""
    from . import objectives

    causal_lm = language_model.load_causal_lm(pretrained, flags.max_length)
    methods.add_adapter(causal_lm, flags.tune, pretrained)
    model = objectives.build(causal_lm)
    if flags.remat:
        import kopt

        kopt.remat(model)
    return causal_lm, model


def train(flags: Train, arguments: Sequence[str] | None = None) -> int:
    """Trains and saves a model; returns the exit code. `arguments` are those of the command line, for the card."""
    check(flags)
    flags = dataclasses.replace(flags, model=language_model.choose_model(flags.model))
    data = examples.load(flags.data, flags.objective)
    pretrained = language_model.find_model(flags.model)
    tokenizer = Tokenizer(pretrained)
    flags = dataclasses.replace(flags, template=tokens.choose_template(flags.template, data.kind, tokenizer))
    label = f"{flags.tune.method}-{flags.objective}"
    with Run("generation", flags, arguments, label) as run:
        return train_in(run, flags, data, pretrained, tokenizer)


def train_in(run: Run, flags: Train, data: Data, pretrained: Pretrained, tokenizer: Tokenizer) -> int:
    """Trains and saves a model in the folder of a run; returns the exit code."""
    from .objectives import keeps_apart

    run.learning_rate = rate = methods.learning_rate(flags.tune, flags.optim)
    optim = dataclasses.replace(flags.optim, learning_rate=rate)
    if flags.data.data is None:
        run.print(f"data: no --data; {data.source}.")
    causal_lm, model = build(flags, pretrained)
    if flags.packing and flags.objective == "sft" and not keeps_apart(causal_lm):
        run.print(
            f"data: {type(causal_lm.backbone).__name__} has no mask for it: texts in a row see those before them."
        )
    parts = {name: encode(run, flags, part, name, tokenizer) for name, part in sets(data).items()}
    references = refer(flags, causal_lm, model, parts)
    made = {name: make_batches(flags, part, references.get(name), name == "train") for name, part in parts.items()}
    training = made["train"]
    sizes: dict[str, Any] = {"examples": len(parts["train"].ids), "batch_size": flags.batch_size}
    optimizer = scaled(make_optimizer(optim, run.count_steps(training), methods.multipliers(flags.tune), **sizes))
    trained, everything = methods.count_parameters(causal_lm)
    compile_model(flags, model, optimizer, run.jit)
    count = int(sum(mask[1:].sum() for mask in parts["train"].learnt))
    bits = "" if flags.tune.quantize is None else f" in {flags.tune.quantize}"
    about = (
        f"{flags.model}{bits}, {flags.tune.method}: {trained:,} of {everything:,} parameters are trained, "
        f"{flags.optim.optimizer}; {len(data.train):,} examples, of which {count:,} tokens are learnt"
    )
    if not run.begin(model, training, about):
        return 0
    before = model.evaluate(made["test"], verbose=0, return_dict=True)
    metric = "margin" if flags.objective == "dpo" else "perplexity"
    run.print(f"before the training: test {metric} {before[metric]:.4f}")
    run.fit(model, training, made.get("validation"), callbacks=make_callbacks(run, training), metric=metric)
    memory = peak_memory()
    save(run, causal_lm, pretrained)
    after = model.evaluate(made["test"], verbose=0, return_dict=True)
    run.tracking.texts({"samples": tabulate_samples(sample(flags, data, causal_lm, pretrained, tokenizer))})
    metrics = run.facts(
        {"model": flags.model, "base": methods.base_name(pretrained), "method": flags.tune.method}
        | {"quantize": flags.tune.quantize, "objective": flags.objective, "template": flags.template}
        | {"peak_memory_mb": memory, "trained_parameters": trained, "parameters": everything},
        measure(before, after),
        describe_data(data, count),
        library_versions(pretrained),
    )
    in_peft = flags.tune.adapts and pretrained.config is not None
    change = f"test {metric} {after[metric]:.4f}, {before[metric]:.4f} before"
    finished = run.finish(metrics, card(run.folder, run.command, flags, metrics, in_peft), change)
    return finished


def sets(data: Data) -> dict[str, list[Example]]:
    """Returns the sets that there are, by name."""
    found = {"train": data.train, "validation": data.validation, "test": data.test}
    return {name: part for name, part in found.items() if part}


def encode(run: Run, flags: Train, part: list[Example], name: str, tokenizer: Tokenizer) -> Encoded:
    """Returns the tokens of a set; prints what is left out of it.

    Raises:
        DataError: nothing is left to learn.
    """
    found, cut, owners = tokens.encode(part, flags.template, tokenizer, flags.max_length)
    lost = len(part) - len(set(owners))
    if cut or lost:
        run.print(
            f"data: {name}: {cut:,} of {len(part):,} examples are longer than --max-length {flags.max_length} tokens "
            f"and are cut; {lost:,} have nothing left to learn and are left out."
        )
    if not found.ids:
        raise DataError(
            f"the {name} set has nothing to learn within --max-length {flags.max_length} tokens. Give a larger one."
        )
    return found


def refer(flags: Train, causal_lm: Any, model: Any, parts: dict[str, Encoded]) -> dict[str, Any]:
    """Returns the log-probabilities of all answers under the reference of DPO: the model without its adapter.

    They are computed once, before the training, so that there is one model in memory and one pass a step.
    """
    if flags.objective == "sft":
        return {}
    from kopt import peft

    from . import objectives

    with peft.disable_adapter(causal_lm) if flags.tune.adapts else contextlib.nullcontext():
        return {
            name: objectives.log_probabilities(model, make_batches(flags, part, None, False))
            for name, part in parts.items()
        }


def make_batches(flags: Train, part: Encoded, reference: Any, shuffled: bool) -> Any:
    """Returns the batches of a set."""
    together = 2 if flags.objective == "dpo" else 1
    return tokens.batches(
        part,
        flags.batch_size,
        flags.max_length,
        flags.packing and together == 1,
        flags.run.seed if shuffled else None,
        reference,
        together,
    )


def compile_model(flags: Train, model: Any, optimizer: Any, jit: bool | str) -> None:
    """Compiles the model of the losses."""
    from . import objectives

    if flags.objective == "dpo":
        preference = objectives.Preference(flags.beta)
        model.compile(optimizer, preference.loss, metrics=preference.metrics(), jit_compile=jit)
    else:
        model.compile(optimizer, objectives.token_mean, metrics=[objectives.Perplexity()], jit_compile=jit)


def make_callbacks(run: Run, training: Any) -> list[Any]:
    """Returns the callback that logs the adapter, if there is one.

    By default it has a tenth of the points of other curves: it looks at every kernel of the model.
    """
    from kopt.tensorboard import AdapterStats

    every, tracking = run.flags.run.log_every or 10 * run.points(run.count_steps(training)), run.tracking
    return [AdapterStats(tracking.log_dir, every, log=tracking.log)] if run.flags.tune.adapts else []


def measure(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Returns the test metrics, before and after the training."""
    found = {f"test_{name}": float(value) for name, value in after.items()}
    return found | {f"test_{name}_before": float(value) for name, value in before.items()}


def describe_data(data: Data, count: int) -> dict[str, Any]:
    """Returns where the three sets are from, and how large they are."""
    sizes = {f"{name}_examples": len(getattr(data, name)) for name in ("train", "validation", "test")}
    origins = {f"{name}_data": data.origins.get(name) for name in ("validation", "test")}
    return {"data": data.source, **origins, **sizes, "train_tokens": count}


def sample(
    flags: Train, data: Data, causal_lm: Any, pretrained: Pretrained, tokenizer: Tokenizer
) -> list[tuple[str, str, str]]:
    """Returns prompts from the test set, what the model writes behind each, and what stands there."""
    from . import sampling

    found = []
    room = language_model.longest(causal_lm, pretrained) or flags.max_length + SAMPLE_TOKENS
    count = min(SAMPLE_TOKENS, room // 2)
    for example in data.test[:SAMPLES]:
        prompt, answer = tokens.ask(example, flags.template, tokenizer)
        prompt = prompt[: min(flags.max_length, room - count)]
        written = sampling.write(causal_lm, tokenizer, prompt, count, 0.0, 1.0, 0)
        found.append((tokenizer.decode(prompt), written, answer))
    return found


def save(run: Run, causal_lm: Any, pretrained: Pretrained) -> None:
    """Writes the adapter or the model, and the model of bytes that the run began with."""
    base, tune = run.folder / language_model.BASE, run.flags.tune
    if pretrained.name == "bytes" and not base.is_dir():
        with atomic_folder(base) as part:
            shutil.copytree(pretrained.place, part, dirs_exist_ok=True)
    if tune.adapts:
        methods.save_adapter(causal_lm, run.folder / "adapter", pretrained)
    else:
        language_model.save_model(causal_lm, pretrained, run.folder / language_model.WHOLE)
    run.save_model(None)


def restore(folder: Path) -> tuple[Train, Pretrained]:
    """Returns flags and language model of a run.

    Raises:
        DataError: the folder holds no complete run.
    """
    flags: Train = read_flags(folder, Train)
    flags = dataclasses.replace(flags, remat=False, run=dataclasses.replace(flags.run, progress="none"))
    pretrained = language_model.find_model(flags.model, folder)
    prepare(flags.run)
    return flags, pretrained


def load(folder: Path, flags: Train, pretrained: Pretrained) -> Any:
    """Returns the model of a run that generates text.

    Raises:
        DataError: it cannot be loaded.
    """
    if flags.tune.adapts:
        tune = dataclasses.replace(flags.tune, adapter=folder)
        return build(dataclasses.replace(flags, tune=tune), pretrained)[0]
    trained = read_folder(pretrained.name, folder / language_model.WHOLE)
    return language_model.load_causal_lm(trained, flags.max_length)


def evaluate(flags: Evaluate) -> int:
    """Prints the test metrics of a run as JSON; returns the exit code."""
    from . import objectives

    refuse(flags, ("on_bad_row",), flags.test_data is None and "without --test-data")
    trained, pretrained = restore(flags.model)
    if flags.test_data is None:
        data = examples.load(trained.data, trained.objective)
        part, source = data.test, data.origins["test"]
    else:
        source, policy = flags.test_data.name, flags.on_bad_row or trained.data.on_bad_row
        kind, part = examples.read(flags.test_data, trained.objective, policy, trained.data.form)
        if (kind == "text") != (trained.template == "none"):
            wanted = "text" if trained.template == "none" else "prompt and response, or messages"
            raise DataError(f"{source}: holds {kind}, but {flags.model} has learnt from others. Give rows of {wanted}.")
    tokenizer = Tokenizer(pretrained)
    encoded, *_ = tokens.encode(part, trained.template, tokenizer, trained.max_length)
    if not encoded.ids:
        raise DataError(f"{source}: nothing to measure within the --max-length of {flags.model}, {trained.max_length}.")
    parts = {"test": encoded}
    # Without an adapter the reference is the model that the run began with.
    start = None if trained.tune.adapts or trained.objective == "sft" else build(trained, pretrained)
    references = {} if start is None else refer(trained, *start, parts)
    causal_lm = load(flags.model, trained, pretrained)
    model = objectives.build(causal_lm)
    if start is None:
        references = refer(trained, causal_lm, model, parts)
    compile_model(trained, model, "sgd", "auto")
    found = model.evaluate(make_batches(trained, encoded, references.get("test"), False), verbose=0, return_dict=True)
    facts = {"data": source, "test_examples": len(part)}
    print(json.dumps({f"test_{name}": float(value) for name, value in found.items()} | facts, indent=2))
    return 0


def predict(flags: Predict) -> int:
    """Prints what the model writes behind each prompt, as it writes it; returns the exit code."""
    if not flags.prompt:
        raise UsageError("predict: give at least one --prompt.")
    check_texts("--prompt", flags.prompt)
    check_texts("--system", [] if flags.system is None else [flags.system])
    trained, pretrained = restore(flags.model)
    refuse(flags, ("system",), trained.template == "none" and "with a run on plain texts")
    tokenizer = Tokenizer(pretrained)
    causal_lm = load(flags.model, trained, pretrained)
    from . import sampling

    before = [] if flags.system is None else [{"role": "system", "content": flags.system}]

    for number, prompt in enumerate(flags.prompt):
        if len(flags.prompt) > 1:
            print(f"> {prompt}")
        start = tokens.prompt_tokens([*before, {"role": "user", "content": prompt}], trained.template, tokenizer)
        language_model.check_length(
            causal_lm, pretrained, len(start) + flags.max_tokens, "--max-tokens with the prompt"
        )
        show = functools.partial(print, end="", flush=True)
        settings = (flags.max_tokens, flags.temperature, flags.top_p, flags.seed + number)
        sampling.write(causal_lm, tokenizer, start, *settings, show)
        print()
    return 0


def export(flags: Export) -> int:
    """Writes the adapter of a run, or its whole model, to a folder; returns the exit code."""
    check_empty(flags.to)
    trained, pretrained = restore(flags.model)
    if flags.merge and not trained.tune.adapts:
        raise UsageError(f"--merge: {flags.model} has no adapter. Leave it out.")
    with new_folder(flags.to) as folder:
        if trained.tune.adapts and not flags.merge:
            shutil.copytree(flags.model / "adapter", folder, dirs_exist_ok=True)
        elif trained.tune.adapts:
            whole = methods.merge(load(flags.model, trained, pretrained), trained.tune)
            language_model.save_model(whole, pretrained, folder / language_model.WHOLE)
        else:
            shutil.copytree(flags.model / language_model.WHOLE, folder / language_model.WHOLE)
        shutil.copy(flags.model / "README.md", folder)
    print(f"exported to {flags.to}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv` (default: the program's arguments) and returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    start = functools.partial(train, arguments=arguments)
    commands: Commands = {Train: start, Evaluate: evaluate, Predict: predict, Export: export}
    return run_command("generation", arguments, commands)
