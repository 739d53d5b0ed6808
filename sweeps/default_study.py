"""The study that `salt-sweep plan --budget C` plans without a study file: the SALT paper's question, at equal
FLOPs.

Sizes, clip, masks, batch and predictor are those of arXiv 2509.24317, tables 2, 4 and 5. The shares bracket
the allocations that the paper found best (a teacher of 9 to 20 % of the FLOPs, its table on allocation).
"""

from __future__ import annotations

from pathlib import Path

#: Stands in messages where a study file's path would.
PATH = Path("(the built-in study)")

_TEXT = """\
# How to split C training FLOPs between a frozen teacher and its student, which sizes, and does it beat EMA
# self-distillation and plain pixel reconstruction at equal cost? The setting is that of the SALT paper
# (arXiv 2509.24317). Written by `salt-sweep plan --budget`; edit it and plan it again.

name: paper
question: >-
  For the same training FLOPs, how should compute be split between a frozen teacher and a student (SALT),
  which sizes, and does it beat EMA self-distillation (V-JEPA) and pixel reconstruction?

# Lists that are only declared are enough to plan with. To submit, name files instead: `train:
# lists/v36m.csv`.
data:
  train: {{name: V-3.6M, clips: 3626129}}         # Kinetics-710, SSv2 and a subset of Panda70M
  selection: {{name: SSv2 selection, clips: 16891}}  # of SSv2's training list: chooses probe settings
  report: {{name: SSv2 validation, clips: 24777}}

clip: {{frames: 16, frame_stride: 4, store_px: 256, crop_px: 224}}
model:
  tubelet_frames: 2                              # 8 x 14 x 14 = 1568 tokens
  patch_px: 16
  predictor: {{width: 384, depth: 12, heads: 16, mlp_width: 1536}}  # and the pixel decoder

# Without counts, visible and target tokens are the published sampler's mean at 24 clips a device.
masks:
  - {{blocks: 8, scale: 0.15}}                     # short-range
  - {{blocks: 2, scale: 0.7}}                      # long-range

budgets_flops: [{budgets}]
seeds: [0]
extra_seeds:                                     # the spread between seeds, at one cell of each arm
  - {{seeds: [1, 2], where: {{students: [vit_l], teachers: [vit_l], teacher_share: [0.1]}}}}
students: [vit_l, vit_h, vit_g, vit_gg]
recipe: salt@1
optim: {{precision: bfloat16}}                     # autocast; weights and losses stay float32
site: default                                    # 64 A100 of 80 GB, utilisation assumed; or a profile

arms:
  pixel: {{}}
  vjepa: {{}}
  salt:
    teachers: [vit_b, vit_l, vit_h]
    teacher_share: [0.05, 0.1, 0.2, 0.4]

minimum_steps: 1000
bad_cells: leave_out                             # where a budget is too small for a size
references: {{random: true, raw: false}}

probes:
  - name: ssv2
    labels: [action]
    kinds: [attentive]
    data: {{train: {{name: SSv2 train, clips: 152022}}}}
    train_clips: 152022
    selection_clips: 16891
    report_clips: 24777
    settings: {{attentive_lrs: [1e-3], attentive_batch_clips: 256}}
"""


def default_study(budgets: tuple[float, ...]) -> bytes:
    """The study file's text with these budgets in FLOPs."""
    return _TEXT.format(budgets=", ".join(f"{budget!r}" for budget in budgets)).encode()
