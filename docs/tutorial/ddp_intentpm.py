"""Predicts clicks (or who earns well): a vector per feature, a small network over all of a row. Data-parallel.

torchrun --nproc-per-node 2 ddp.py [data.npz] [epochs]

data.npz: for each split, train and test: ids S_cat [rows, fields], numbers S_num [rows, n], S_label [rows] of 0 and 1
"""

import sys

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import binary_cross_entropy_with_logits as log_loss

import intentpm.optim
import intentpm.torch


class ClickModel(torch.nn.Module):
    def __init__(self, features, fields, numbers):
        super().__init__()
        self.features = features
        layers = [torch.nn.Linear(16 * fields + numbers, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32), torch.nn.ReLU()]
        self.network = torch.nn.Sequential(*layers, torch.nn.Linear(32, 1))

    def forward(self, ids, numbers):
        return self.network(torch.cat([self.features(ids).flatten(1), numbers], 1)).squeeze(1)


def read(path):
    if path:
        data = dict(np.load(path))
    else:  # no file: clicks that depend on how much each feature is liked
        random = np.random.default_rng(0)
        ids = 40 * np.arange(8) + random.zipf(1.3, (30_000, 8)) % 40
        numbers = random.normal(size=(30_000, 4))
        clicked = random.logistic(size=30_000) < random.normal(size=320)[ids].sum(1) + numbers.sum(1) - 2
        data = {}
        for split, rows in (("train", slice(0, 25_000)), ("test", slice(25_000, None))):
            data |= {f"{split}_cat": ids[rows], f"{split}_num": numbers[rows], f"{split}_label": clicked[rows]}
    numbers = [np.sign(n) * np.log1p(np.abs(n)) for n in (data["train_num"], data["test_num"])]
    mean, deviation = numbers[0].mean(0), numbers[0].std(0)
    splits = []
    for split, raw in zip(("train", "test"), numbers, strict=True):
        scaled = torch.tensor((raw - mean) / deviation).float()
        splits.append([torch.tensor(data[f"{split}_cat"]).long(), scaled, torch.tensor(data[f"{split}_label"]).float()])
    return splits


def auc(score, label):
    place = score.argsort().argsort().double()[label == 1] + 1
    hits = len(place)
    return (place.sum() - hits * (hits + 1) / 2) / (hits * (len(label) - hits))


def main(path=None, epochs="3"):
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    pm = intentpm.init()
    worker, adagrad = pm.worker(), intentpm.optim.Adagrad(lr=0.02)
    torch.manual_seed(0)
    train, test = read(path)
    features = torch.nn.Embedding(int(max(train[0].max(), test[0].max())) + 1, 16, sparse=True)
    features = intentpm.torch.Embedding.from_pretrained(features, worker, "features", adagrad)
    model = ClickModel(features, train[0].shape[1], train[1].shape[1])
    intentpm.torch.average_gradients(model, pm)
    optimizers = [torch.optim.Adam(model.network.parameters(), lr=0.001)]
    dataset = torch.utils.data.TensorDataset(*train)
    sampler = torch.utils.data.DistributedSampler(dataset, size, rank)
    loader = torch.utils.data.DataLoader(dataset, batch_size=256 // size, sampler=sampler)
    loader = intentpm.torch.IntentLoader(worker, loader, {features.table: lambda batch: batch[0]})
    for epoch in range(int(epochs)):
        sampler.set_epoch(epoch)
        for ids, numbers, label in loader:
            loss = log_loss(model(ids, numbers), label)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
        pm.barrier()
        with torch.no_grad():
            score = model(*test[:2])
        if rank == 0:
            loss = log_loss(score, test[2])
            print(f"epoch {epoch + 1}: test loss {loss:.4f} AUC {auc(score, test[2]):.4f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
