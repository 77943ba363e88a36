# Cascade Mask R-CNN with ViTDet's backbone on `@source@` for mmdetection 3.x, written by tec-zoo @version@.
# The file named below holds, under 'model', every key of projects/ViTDet's `ViT` at @height@ and no other: relative
# positions the model has none of are zeros, as that project begins. The class resizes the position table itself, for every input.
# Run it from a checkout of mmdetection, where `projects` can be imported.
_base_ = [
    'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py', 'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py', 'mmdet::_base_/default_runtime.py']
custom_imports = dict(imports=['projects.ViTDet.vitdet'])
norm_cfg = dict(type='LN2d', requires_grad=True)
image_size = (@height@, @width@)
model = dict(
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=@mean255@, std=@std255@, bgr_to_rgb=True, pad_mask=True, pad_size_divisor=32,
        batch_augments=[dict(type='BatchFixedSizePad', size=image_size, pad_mask=True)]),
    backbone=dict(
        _delete_=True, type='ViT', img_size=@height@, patch_size=@patch@, embed_dim=@dim@, depth=@depth@, num_heads=@heads@,
        mlp_ratio=@mlp_ratio@, qkv_bias=True, drop_path_rate=0.1, norm_cfg=dict(type='LN', eps=@eps@),
        window_size=@window@, window_block_indexes=@windowed@, use_rel_pos=True,
        pretrain_img_size=@native@, pretrain_use_cls_token=@cls_row@,
        init_cfg=dict(type='Pretrained', checkpoint='{{ fileDirname }}/@weights@')),
    neck=dict(
        _delete_=True, type='SimpleFPN', backbone_channel=@dim@, in_channels=[@dim@ // 4, @dim@ // 2, @dim@, @dim@],
        out_channels=256, num_outs=5, norm_cfg=norm_cfg),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=[
            dict(
                type='Shared4Conv1FCBBoxHead', in_channels=256, conv_out_channels=256, fc_out_channels=1024, roi_feat_size=7,
                num_classes=80, norm_cfg=norm_cfg, reg_class_agnostic=True,
                bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0., 0., 0., 0.], target_stds=stds),
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0))
            for stds in ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])],
        mask_head=dict(norm_cfg=norm_cfg)))
