"""Recommends films: learns a vector per user and per film from ratings, and a small network that compares them.

python plain.py [ratings.npz] [epochs]        ratings.npz: arrays user, item, rating, and split (0: train, 2: test)
"""

import sys

import numpy as np
import torch


class Recommender(torch.nn.Module):
    def __init__(self, users, items, mean):
        super().__init__()
        self.users, self.items, self.mean = users, items, mean
        self.network = torch.nn.Sequential(torch.nn.Linear(48, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))

    def forward(self, user, item):
        user, item = self.users(user), self.items(item)
        return self.mean + self.network(torch.cat([user, item, user * item], 1)).squeeze(1)


def read(path):
    if path:
        return dict(np.load(path))
    random = np.random.default_rng(0)  # no file: ratings by generous and strict users of good and bad films
    user, item = random.integers(0, 300, 30_000), random.integers(0, 500, 30_000)
    rating = 3 + random.normal(size=300)[user] + random.normal(size=500)[item]
    return {"user": user, "item": item, "rating": rating, "split": random.choice([0, 2], 30_000, p=[0.9, 0.1])}


def main(path=None, epochs="5"):
    torch.manual_seed(0)
    data = read(path)
    columns = [torch.tensor(data["user"]), torch.tensor(data["item"]), torch.tensor(data["rating"]).float()]
    train, test = ([column[torch.tensor(data["split"] == split)] for column in columns] for split in (0, 2))
    users = torch.nn.Embedding(int(columns[0].max()) + 1, 16, sparse=True)
    items = torch.nn.Embedding(int(columns[1].max()) + 1, 16, sparse=True)
    model = Recommender(users, items, train[2].mean())
    optimizers = [torch.optim.Adam(model.network.parameters(), lr=0.005)]
    optimizers += [torch.optim.Adagrad([*users.parameters(), *items.parameters()], lr=0.05)]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*train), batch_size=256, shuffle=True)
    for epoch in range(int(epochs)):
        for user, item, rating in loader:
            loss = ((model(user, item) - rating) ** 2).mean()
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
        with torch.no_grad():
            rmse = ((model(test[0], test[1]) - test[2]) ** 2).mean().sqrt()
        print(f"epoch {epoch + 1}: test RMSE {rmse:.4f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
