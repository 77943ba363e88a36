# UperNet on `@source@` for iBOT's evaluation/semantic_segmentation (mmsegmentation 0.x), written by tec-zoo @version@.
# The file named below holds, under 'state_dict', every key of that project's `VisionTransformer` at @height@ and no other:
# its position table is resized@pyramid@.
# Put this file into evaluation/semantic_segmentation/configs/upernet; `pretrained` is loaded by the backbone itself.
_base_ = [
    '../_base_/models/upernet.py', '../_base_/datasets/ade20k.py',
    '../_base_/default_runtime.py', '../_base_/schedules/schedule_160k.py']
# Normalisation of the data: mean=@mean255@, std=@std255@, to_rgb=True.
crop_size = (@height@, @width@)
model = dict(
    pretrained='@weights@',
    backbone=dict(
        type='VisionTransformer', img_size=[@height@], patch_size=@patch@, embed_dim=@dim@, depth=@depth@, num_heads=@heads@,
        mlp_ratio=@mlp_ratio@, qkv_bias=True, drop_path_rate=0.1, init_values=@layer_scale@,
        out_indices=@levels@, out_with_norm=@final_norm@, with_fpn=@with_fpn@),
    decode_head=dict(in_channels=[@dim@] * 4, num_classes=150, channels=@dim@),
    auxiliary_head=dict(in_channels=@dim@, num_classes=150),
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(@height@ * 2 // 3, @width@ * 2 // 3)))
