# A linear classifier on `@source@` for mmpretrain 1.x, written by tec-zoo @version@.
# The file named below holds every key of mmpretrain's `VisionTransformer` with these arguments and no other.
custom_imports = dict(imports=['mmpretrain.models'])
data_preprocessor = dict(num_classes=1000, mean=@mean255@, std=@std255@, to_rgb=True)
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=@dim@, num_layers=@depth@, num_heads=@heads@, feedforward_channels=@hidden@),
        img_size=(@height@, @width@), patch_size=@patch@, out_type='@out_type@', final_norm=@final_norm@,
        norm_cfg=dict(type='LN', eps=@eps@), layer_scale_init_value=@layer_scale@,
        init_cfg=dict(type='Pretrained', checkpoint='{{ fileDirname }}/@weights@')),
    head=dict(
        type='LinearClsHead', num_classes=1000, in_channels=@dim@,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
