"""Accuracies as papers print them, 5-way 1-shot unless said otherwise, in percent."""

from __future__ import annotations

ABLATION: dict[tuple[str, str], dict[str, float]] = {  # Lt-Di's Tables 1, 7 and 8, by images and body
    ("omniglot", "conv4"): {"REPTILE": 95.39, "LLO-VAE": 94.92, "Lv-Di": 96.35, "Lt-Di": 97.12},
    ("mini-imagenet", "conv4"): {"REPTILE": 47.07, "LLO-VAE": 58.12, "Lv-Di": 66.90, "Lt-Di": 68.10},
    ("omniglot", "swin_t"): {"REPTILE": 98.27, "LLO-VAE": 97.43, "Lv-Di": 98.93, "Lt-Di": 99.90},
    ("omniglot", "resnet18"): {"REPTILE": 97.11, "LLO-VAE": 96.60, "Lv-Di": 98.44, "Lt-Di": 98.82},
    ("omniglot", "mobilenet_v2"): {"REPTILE": 93.79, "LLO-VAE": 93.61, "Lv-Di": 94.92, "Lt-Di": 95.84},
    ("mini-imagenet", "swin_t"): {"REPTILE": 57.27, "LLO-VAE": 66.26, "Lv-Di": 76.75, "Lt-Di": 82.38},
    ("mini-imagenet", "resnet18"): {"REPTILE": 52.55, "LLO-VAE": 60.32, "Lv-Di": 70.76, "Lt-Di": 77.85},
    ("mini-imagenet", "mobilenet_v2"): {"REPTILE": 40.67, "LLO-VAE": 53.27, "Lv-Di": 59.33, "Lt-Di": 64.81},
}
ZERO_SHOT_SETS = ("CIFAR-10", "CIFAR-100", "STL-10", "Aircraft", "Pets")
ZERO_SHOT: dict[str, tuple[float, ...]] = {  # Lt-Di's Table 2, ResNet-12 and ImageNet, by `ZERO_SHOT_SETS`
    "REPTILE": (48.31, 32.92, 45.25, 11.82, 17.25),
    "Meta-Baseline": (55.48, 40.52, 75.06, 19.17, 22.84),
    "ICIS": (61.75, 47.66, 80.59, 26.42, 28.71),
    "GHN3": (61.18, 49.94, 80.54, 26.46, 29.95),
    "Lv-Di": (61.74, 48.42, 78.89, 27.87, 29.53),
    "Lt-Di": (62.07, 51.73, 81.64, 28.69, 31.88),
}
DOMAIN_NET: dict[str, tuple[float, float]] = {  # Lt-Di's Table 4, the sketches left out: 5-way 1-shot, 20-way 5-shot
    "REPTILE": (48.13, 52.32),
    "Meta-Baseline": (50.54, 54.45),
    "Meta-Hypernetwork": (59.00, 63.32),
    "OCD": (64.58, 67.10),
    "GHN3": (63.11, 66.42),
    "MetaDiff": (64.24, 67.58),
    "Lv-Di": (66.75, 69.98),
    "Lt-Di": (68.10, 72.42),
}
RIVALS: dict[str, dict[str, str]] = {  # what Lt-Di's Table 3 prints (5-way 1-shot: Omniglot, mini-ImageNet), and their own papers
    "Meta-Baseline (Chen et al., 2021)": {"lt-di": "97.75, 58.10", "own": "none in its abstract; the paper was not at hand"},
    "Meta-Hypernetwork (Zhao et al., 2020)": {"lt-di": "96.57, 60.51", "own": "none in its abstract; the paper was not at hand"},
    "OCD (Lutati and Wolf, 2023)": {"lt-di": "95.04, 62.76", "own": "names no few-shot task on images"},
    "GHN3 (Knyazev et al., 2023)": {"lt-di": "95.23, 66.22", "own": "its abstract names no few-shot task: it predicts parameters of ImageNet networks, to start training from"},
    "MetaDiff (Zhang et al., 2024)": {"lt-di": "96.65, 67.23", "own": "mini-ImageNet 55.06 (Conv-4), 64.99 (ResNet-12); 5-shot 73.18, 81.21 (Lt-Di's table: 80.81)"},
    "Lt-Di": {"lt-di": "97.12, 68.10", "own": "the same"},
}
