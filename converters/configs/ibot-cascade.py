# Cascade Mask R-CNN on `@source@` for iBOT's evaluation/object_detection (mmdetection 2.x), written by tec-zoo @version@.
# The file named below holds, under 'state_dict', every key of that project's `VisionTransformer` at @height@x@width@ and no
# other: its position table is resized@pyramid@.
# Put this file into evaluation/object_detection/configs/cascade_rcnn. That project's `pretrained=` resizes tables itself, and
# only square ones: load this file strictly, after the detector is built,
#     detector.backbone.load_state_dict(torch.load('@weights@')['state_dict'])
# or write one for `pretrained=` with `tec-zoo convert … --to ibot --size @native@`.
_base_ = [
    '../_base_/models/cascade_mask_rcnn_vit_fpn.py', '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py']
# Normalisation of the data: mean=@mean255@, std=@std255@, to_rgb=True; padded to multiples of 32.
model = dict(
    backbone=dict(
        type='VisionTransformer', img_size=[@height@, @width@], patch_size=@patch@, embed_dim=@dim@, depth=@depth@,
        num_heads=@heads@, mlp_ratio=@mlp_ratio@, qkv_bias=True, drop_path_rate=0.1, init_values=@layer_scale@,
        out_indices=@levels@, out_with_norm=@final_norm@, with_fpn=@with_fpn@),
    neck=dict(in_channels=[@dim@] * 4))
