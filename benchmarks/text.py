"""The run of `recipes.text_classification --method lora`, repeated by Hugging Face peft on torch.

    python -m benchmarks.text --run saved_models/text_classification/RUN [--seeds 1 2 3]

The same texts in the same batches, the same rank, targets, dropout, optimizer, schedule and head; the start and the
masks of dropout are torch's own. Prints the accuracy for each seed, and that of the run.
"""

import argparse
import json
import re
import statistics
import time
from pathlib import Path


def classifier(folder, classes, dropout, adapter):
    """Returns MiniLM with an adapter and a head on the mean over the tokens."""
    import peft
    import torch
    import transformers

    transformers.logging.set_verbosity_error()

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = transformers.AutoModel.from_pretrained(folder)
            self.dropout = torch.nn.Dropout(dropout)
            self.classifier = torch.nn.Linear(self.bert.config.hidden_size, classes)

        def forward(self, attention_mask, **inputs):
            states = self.bert(attention_mask=attention_mask, **inputs).last_hidden_state
            mask = attention_mask[..., None]
            return self.classifier(self.dropout((states * mask).sum(1) / mask.sum(1)))

    return peft.get_peft_model(Classifier(), peft.LoraConfig(modules_to_save=["classifier"], **adapter))


def tensors(batch):
    """Returns the inputs of a batch of the recipe as those of torch."""
    import torch

    names = {"token_ids": "input_ids", "padding_mask": "attention_mask", "segment_ids": "token_type_ids"}
    return {names[key]: torch.tensor(value.numpy()).long() for key, value in batch.items()}


def flags_of(run):
    """Returns the flags of a run."""
    from recipes.run.command_line import parse
    from recipes.text_classification import Train

    return parse(["--config", str(run / "config.yaml")], {"train": Train}, "config.yaml")


def train(run, seed):
    """Returns the accuracy, the seconds of training and the number of parameters that learn."""
    import dataclasses

    import torch

    from recipes.run.batches import one_hot
    from recipes.run.optimizer_flags import make_optimizer
    from recipes.text_classification import batches, corpus, language_model, methods

    flags, metrics = flags_of(run), json.loads((run / "metrics.json").read_text())
    torch.manual_seed(seed)
    pretrained = language_model.find_model(flags.model)
    data = corpus.load(flags.data)
    encode, classes = language_model.Tokenizer(pretrained), len(data.names)
    encoded = [encode(p.texts.texts, p.texts.pairs, flags.max_length) for p in (data.train, data.test)]
    targets = one_hot(data.train.y, classes)
    training = batches.batches(encoded[0], targets, flags.batch_size, shuffle_seed=seed)
    told = json.loads((run / "adapter" / "adapter_config.json").read_text())  # the same layers, whatever the defaults
    names = ("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules")
    adapter = {name: told[name] for name in names if told.get(name) is not None}
    model = classifier(pretrained.place, classes, flags.dropout, adapter).train()
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rate = metrics["learning_rate"]
    optim = dataclasses.replace(flags.optim, learning_rate=rate)
    factors = methods.multipliers(flags.tune, optim)
    ours = make_optimizer(optim, flags.epochs * len(training))

    def factor(name):
        path = name.removesuffix(".default.weight").replace(".", "/")
        return next((factor for pattern, factor in factors if re.search(pattern, path)), 1.0)

    def share(update):
        ours.iterations.assign(update)
        return float(ours.learning_rate) / rate

    groups = [{"params": [p], "lr": rate * factor(name)} for name, p in learning.items()]
    betas = (ours.beta_1, ours.beta_2)
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=ours.epsilon, weight_decay=ours.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    loss, began = torch.nn.CrossEntropyLoss(), time.perf_counter()
    for _ in range(flags.epochs):
        for x, y, *_ in training:
            optimizer.zero_grad()
            loss(model(**tensors(x)), torch.tensor(y.numpy())).backward()
            if flags.optim.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(learning.values(), flags.optim.clip_norm)
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - began
    model.eval()
    right = 0
    with torch.no_grad():
        y_test = one_hot(data.test.y, classes)
        for x, y, *_ in batches.batches(encoded[1], y_test, 64):
            right += int((model(**tensors(x)).argmax(1).numpy() == y.numpy().argmax(1)).sum())
    return right / len(data.test), seconds, sum(p.numel() for p in learning.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run of --method lora")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], help="seeds of torch")
    flags = parser.parse_args()
    metrics = json.loads((flags.run / "metrics.json").read_text())
    if metrics.get("method") != "lora":
        parser.error(f"--run {flags.run}: is of --method {metrics.get('method')}, expected lora")
    told = flags_of(flags.run)
    if told.optim.optimizer != "adamw" or told.optim.opt or told.optim.ema or told.optim.grad_accum > 1:
        parser.error(f"--run {flags.run}: has {told.optim}, expected adamw without --opt, --ema and --grad-accum")
    if told.class_weights or told.pooling != "mean" or told.run.precision != "float32":
        parser.error(f"--run {flags.run}: expected --pooling mean and --precision float32, without --class-weights")
    print(f"kopt, seed {metrics['seed']}: {metrics['test_accuracy']:.4f} in {metrics['train_seconds']:.0f} s")
    found = []
    for seed in flags.seeds:
        accuracy, seconds, learning = train(flags.run, seed)
        found.append(accuracy)
        print(f"peft, seed {seed}: {accuracy:.4f} in {seconds:.0f} s, {learning:,} parameters learn", flush=True)
    if len(found) > 1:
        print(f"peft: mean {statistics.mean(found):.4f}, from {min(found):.4f} to {max(found):.4f}")


if __name__ == "__main__":
    main()
