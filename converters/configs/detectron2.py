# ViTDet's Mask R-CNN on `@source@` for detectron2, a LazyConfig written by tec-zoo @version@.
# The file named below holds, under 'model', every key of `ViT` at @height@ (as `backbone.net.…`) and no other: relative
# positions the model has none of are zeros, as ViTDet begins; the pyramid and the heads begin at random. The class resizes the position table
# itself, for every input. Data and schedule: projects/ViTDet/configs/common/coco_loader_lsj.py and configs/COCO there.
import os
from functools import partial

import torch.nn as nn
from detectron2 import model_zoo
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate

model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
model.pixel_mean = @mean255@
model.pixel_std = @std255@
model.input_format = "RGB"
model.backbone.square_pad = @height@
model.backbone.net.img_size = @height@
model.backbone.net.patch_size = @patch@
model.backbone.net.embed_dim = @dim@
model.backbone.net.depth = @depth@
model.backbone.net.num_heads = @heads@
model.backbone.net.mlp_ratio = @mlp_ratio@
model.backbone.net.norm_layer = partial(nn.LayerNorm, eps=@eps@)
model.backbone.net.window_size = @window@
model.backbone.net.window_block_indexes = @windowed@
model.backbone.net.use_rel_pos = True
model.backbone.net.pretrain_img_size = @native@
model.backbone.net.pretrain_use_cls_token = @cls_row@

train = model_zoo.get_config("common/train.py").train
train.amp.enabled = True
train.init_checkpoint = os.path.join(os.path.dirname(__file__), "@weights@")

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.params.lr_factor_func = partial(get_vit_lr_decay_rate, num_layers=@depth@, lr_decay_rate=0.7)
optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}
