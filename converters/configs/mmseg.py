# UperNet on `@source@` for mmsegmentation 1.x, written by tec-zoo @version@.
# The file named below holds every key of mmseg's `MAE` at @height@x@width@ and no other: its position table is resized, its
# relative position tables are zeros and LayerScale is @scale@, so that the class computes what the model does.
# `init_cfg` loads it. Do not put it in a prefix of your own: the class loads without complaint what it does not find.
_base_ = ['mmseg::_base_/datasets/ade20k.py', 'mmseg::_base_/default_runtime.py', 'mmseg::_base_/schedules/schedule_160k.py']
custom_imports = dict(imports=['mmseg.engine.optimizers'])
norm_cfg = dict(type='SyncBN', requires_grad=True)
crop_size = (@height@, @width@)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=@mean255@, std=@std255@, bgr_to_rgb=True, pad_val=0, seg_pad_val=255, size=crop_size),
    backbone=dict(
        type='MAE', img_size=crop_size, patch_size=@patch@, embed_dims=@dim@, num_layers=@depth@, num_heads=@heads@,
        mlp_ratio=@mlp_ratio@, out_indices=@levels@, final_norm=False, norm_cfg=dict(type='LN', eps=@eps@),
        init_values=1.0, drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='{{ fileDirname }}/@weights@')),
    neck=dict(type='Feature2Pyramid', embed_dim=@dim@, rescales=[4, 2, 1, 0.5], norm_cfg=norm_cfg),
    decode_head=dict(
        type='UPerHead', in_channels=[@dim@] * 4, in_index=[0, 1, 2, 3], pool_scales=(1, 2, 3, 6), channels=@dim@,
        dropout_ratio=0.1, num_classes=150, norm_cfg=norm_cfg, align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    auxiliary_head=dict(
        type='FCNHead', in_channels=@dim@, in_index=2, channels=256, num_convs=1, concat_input=False,
        dropout_ratio=0.1, num_classes=150, norm_cfg=norm_cfg, align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4)),
    train_cfg=dict(),
    # The class adds its table as it is: every input has the crop's size.
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(@height@ * 2 // 3, @width@ * 2 // 3)))
# As in mmsegmentation's configs/mae.
optim_wrapper = dict(
    _delete_=True, type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='LayerDecayOptimizerConstructor',
    paramwise_cfg=dict(num_layers=@depth@, layer_decay_rate=0.65))
