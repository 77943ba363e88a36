//! The frameworks' own layouts, against the keys, types and shapes of their classes (fixtures/consumers); the classes
//! themselves load the files in tests/consumers.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use tec_zoo::checkpoint::Checkpoint;
use tec_zoo::convert::{ConvertError, Emission, Layout, emit};
use tec_zoo::model::position::resample;
use tec_zoo::model::{Canonical, Resample};

use super::torch_file::{Tensor, tensors};
use super::{fixture, four_heads, open, run, run_edited};
use crate::words::InFull;

/// Every layout with the size asked for, and its entry in the fixture.
const LAYOUTS: [(Layout, Option<[usize; 2]>, &str); 6] = [
    (Layout::Mmseg, None, "mmseg"),
    (Layout::Mmpretrain, None, "mmpretrain"),
    (Layout::Mmdet, None, "mmdet"),
    (Layout::Detectron2, None, "detectron2"),
    (Layout::Ibot, None, "ibot 672x1092"),
    (Layout::Ibot, Some([512, 512]), "ibot 512x512"),
];

/// The MAE fixture with two more blocks, copies of its last: six, so that ViTDet has windowed ones.
fn six_blocks() -> Vec<Tensor> {
    let mut all = tensors(&open("mae_pretrain_vit_tiny.pth"));
    let last: Vec<Tensor> = all.iter().filter(|tensor| tensor.key().starts_with("blocks.3.")).cloned().collect();
    for block in [4, 5] {
        all.extend(last.iter().cloned().map(|mut tensor| {
            let key = tensor.path.last_mut().unwrap();
            *key = key.replace("blocks.3.", &format!("blocks.{block}."));
            tensor
        }));
    }
    all
}

fn emitted(model: &Path, layout: Layout, size: Option<[usize; 2]>, out: &Path) -> Result<Emission, ConvertError> {
    emit(&Canonical::open(model).unwrap(), layout, size, out, &mut |_| ControlFlow::Continue(()))
}

/// The file's tensors by key, the outer dictionary's key taken off.
fn read(path: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let file = Checkpoint::open(path).unwrap();
    let tensor = |entry: &tec_zoo::checkpoint::TensorEntry| {
        let bytes = file.bytes(entry).unwrap().into_owned();
        (entry.path.last().unwrap().clone(), (entry.dtype, entry.shape.clone(), bytes))
    };
    file.tensors().iter().map(tensor).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn every_layout_has_exactly_the_keys_types_and_shapes_of_the_frameworks_own_class() {
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/consumers/keys.json");
    let table: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(table).unwrap()).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let model = temp.path().join("model");
    run_edited(&six_blocks(), &model, &four_heads()).unwrap();
    for (layout, size, entry) in LAYOUTS {
        let out = temp.path().join(format!("{entry}.pth"));
        emitted(&model, layout, size, &out).unwrap();
        let theirs: BTreeMap<String, (String, Vec<usize>)> = serde_json::from_value(table[entry].clone()).unwrap();
        let ours: BTreeMap<String, (String, Vec<usize>)> = read(&out)
            .into_iter()
            .map(|(key, (dtype, shape, _))| {
                let name = if dtype == Dtype::I64 { "int64" } else { "float32" };
                (key, (name.to_owned(), shape))
            })
            .collect();
        assert_eq!(ours, theirs, "{entry}");
        assert!(ours.len() > 6 * 12, "{entry}");
    }
}

#[test]
fn the_outer_dictionary_is_the_one_each_loader_looks_for() {
    let temp = tempfile::tempdir().unwrap();
    let model = temp.path().join("model");
    run(&fixture("mae_pretrain_vit_tiny.pth"), &model, &four_heads()).unwrap();
    for (layout, roots) in [
        (Layout::Mmseg, &[][..]),
        (Layout::Mmpretrain, &[]),
        (Layout::Mmdet, &["model"]),
        (Layout::Detectron2, &["model"]),
        (Layout::Ibot, &["state_dict"]),
    ] {
        let out = temp.path().join(format!("{}.pth", layout.name()));
        emitted(&model, layout, None, &out).unwrap();
        for entry in Checkpoint::open(&out).unwrap().tensors() {
            assert_eq!(entry.path[..entry.path.len() - 1], *roots, "{}", layout.name());
        }
    }
}

#[test]
fn what_a_class_shares_with_the_model_is_copied_bit_for_bit_and_the_rest_changes_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let at = |part: &str| temp.path().join(part);
    run_edited(&six_blocks(), &at("model"), &four_heads()).unwrap();
    let model = Canonical::open(&at("model")).unwrap();
    let same = |file: &BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>, key: &str, name: &str| {
        assert_eq!(file[key].2, model.get(name).unwrap().bytes, "{key}");
    };

    emitted(&at("model"), Layout::Mmseg, Some([64, 96]), &at("mmseg.pth")).unwrap();
    let file = read(&at("mmseg.pth"));
    same(&file, "cls_token", "cls_token");
    same(&file, "patch_embed.projection.weight", "patch_embed.proj.weight");
    same(&file, "layers.5.ffn.layers.1.weight", "blocks.5.mlp.fc2.weight");
    same(&file, "layers.2.ln2.bias", "blocks.2.norm2.bias");
    assert!(floats(&file["layers.3.gamma_2"].2).iter().all(|value| *value == 1.0));
    assert!(floats(&file["layers.3.attn.relative_position_bias_table"].2).iter().all(|value| *value == 0.0));
    let table = floats(model.get("pos_embed").unwrap().bytes);
    let wanted = resample(&table, 16, [4, 4], [4, 6], Resample::Size).unwrap();
    assert_eq!(floats(&file["pos_embed"].2), wanted);
    // At its own size the table is the model's, and nothing is computed.
    emitted(&at("model"), Layout::Mmseg, Some([64, 64]), &at("native.pth")).unwrap();
    same(&read(&at("native.pth")), "pos_embed", "pos_embed");

    emitted(&at("model"), Layout::Detectron2, None, &at("detectron2.pth")).unwrap();
    let file = read(&at("detectron2.pth"));
    same(&file, "backbone.net.pos_embed", "pos_embed");
    same(&file, "backbone.net.blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.weight");
    assert!(floats(&file["backbone.net.blocks.1.attn.rel_pos_h"].2).iter().all(|value| *value == 0.0));
}

#[test]
fn the_index_of_relative_positions_reads_the_row_of_the_offset() {
    let temp = tempfile::tempdir().unwrap();
    let at = |part: &str| temp.path().join(part);
    run(&fixture("mae_pretrain_vit_tiny.pth"), &at("model"), &four_heads()).unwrap();
    emitted(&at("model"), Layout::Mmseg, Some([32, 48]), &at("out.pth")).unwrap();
    let file = read(&at("out.pth"));
    let (_, shape, bytes) = &file["layers.0.attn.relative_position_index"];
    assert_eq!(*shape, [7, 7]);
    let index: Vec<i64> = bytes.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect();
    // A grid of 2 × 3 has 3 · 5 offsets, counted from (−1, −2); what BEiT's code gives for it.
    assert_eq!(index[..7], [17, 15, 15, 15, 15, 15, 15]);
    assert_eq!(index[7..14], [16, 7, 6, 5, 2, 1, 0]);
    assert_eq!(index[42..], [16, 14, 13, 12, 9, 8, 7]);
    // All blocks read one storage: it is a buffer.
    let size = std::fs::metadata(at("out.pth")).unwrap().len();
    emitted(&at("model"), Layout::Mmseg, Some([512, 512]), &at("large.pth")).unwrap();
    let grown = std::fs::metadata(at("large.pth")).unwrap().len() - size;
    assert!(grown < 2 * 8 * 1025 * 1025, "{grown}");
}

#[test]
fn what_a_class_cannot_say_is_refused_with_the_reason_and_nothing_is_left_behind() {
    let temp = tempfile::tempdir().unwrap();
    let at = |part: &str| temp.path().join(part);
    run(&fixture("mae_pretrain_vit_tiny.pth"), &at("mae"), &four_heads()).unwrap();
    for (file, model) in [("vit_tiny14_pretrain.pth", "scaled"), ("vit_reg4_tiny14_pretrain.pth", "registers")] {
        run(&fixture(&format!("../dinov2/{file}")), &at(model), &four_heads()).unwrap();
    }
    let refusal =
        |model: &str, layout, size, out: &str| emitted(&at(model), layout, size, &at(out)).unwrap_err().in_full();
    for (error, reason) in [
        (refusal("registers", Layout::Mmseg, None, "out.pth"), "register tokens"),
        (refusal("registers", Layout::Ibot, None, "out.pth"), "register tokens"),
        (refusal("scaled", Layout::Mmdet, None, "out.pth"), "LayerScale"),
        (refusal("scaled", Layout::Detectron2, None, "out.pth"), "LayerScale"),
        (refusal("mae", Layout::Detectron2, Some([512, 768]), "out.pth"), "one side"),
        (refusal("mae", Layout::Mmseg, Some([8, 512]), "out.pth"), "no patch"),
        (refusal("mae", Layout::Mmseg, Some([8192, 8192]), "out.pth"), "index"),
        (refusal("mae", Layout::Mmseg, Some([usize::MAX, usize::MAX]), "out.pth"), "index"),
        (refusal("mae", Layout::Mmseg, None, "out"), "`.pth` file"),
        (refusal("mae", Layout::Timm, Some([64, 64]), "out"), "leave out `size`"),
    ] {
        assert!(error.contains(reason) && error.contains("\nhint: "), "{error}");
    }
    assert!(!at("out.pth").exists() && !at("out.py").exists());

    std::fs::write(at("taken.py"), "mine").unwrap();
    let error = refusal("mae", Layout::Mmseg, None, "taken.pth");
    assert!(error.contains("taken.py") && error.contains("`overwrite` replaces it"), "{error}");
    assert!(!at("taken.pth").exists());

    let stopped = emit(&Canonical::open(&at("mae")).unwrap(), Layout::Mmseg, None, &at("stopped.pth"), &mut |_| {
        ControlFlow::Break(())
    });
    assert!(matches!(stopped, Err(ConvertError::Interrupted)), "{stopped:?}");
    let names: Vec<PathBuf> = std::fs::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
}

#[test]
fn layer_scale_is_kept_where_the_class_has_it() {
    let temp = tempfile::tempdir().unwrap();
    let at = |part: &str| temp.path().join(part);
    run(&fixture("../dinov2/vit_tiny14_pretrain.pth"), &at("model"), &four_heads()).unwrap();
    let model = Canonical::open(&at("model")).unwrap();
    let gamma = model.get("blocks.1.ls2.gamma").unwrap().bytes;
    for (layout, key) in [
        (Layout::Mmseg, "layers.1.gamma_2"),
        (Layout::Mmpretrain, "layers.1.ffn.gamma2.weight"),
        (Layout::Ibot, "blocks.1.gamma_2"),
    ] {
        let out = at(&format!("{}.pth", layout.name()));
        let made = emitted(&at("model"), layout, None, &out).unwrap();
        assert_eq!(read(&out)[key].2, gamma, "{key}");
        assert!(!made.added.iter().any(|added| added.contains("LayerScale")), "{:?}", made.added);
        let config = std::fs::read_to_string(made.config.unwrap()).unwrap();
        let field = if layout == Layout::Mmpretrain { "layer_scale_init_value=1.0" } else { "init_values=1.0" };
        assert!(config.contains(field), "{config}");
    }
}

#[test]
fn the_configuration_beside_the_file_has_every_number_of_it_filled_in() {
    let temp = tempfile::tempdir().unwrap();
    let model = temp.path().join("model");
    run_edited(&six_blocks(), &model, &four_heads()).unwrap();
    for (layout, size, entry) in LAYOUTS {
        let name = entry.replace(' ', "-");
        let made = emitted(&model, layout, size, &temp.path().join(format!("{name}.pth"))).unwrap();
        let path = made.config.unwrap();
        assert_eq!(path, temp.path().join(format!("{name}.py")));
        let text = std::fs::read_to_string(path).unwrap();
        assert!(!text.contains('@'), "{text}");
        for part in [format!("{name}.pth"), "123.675, 116.28, 103.53".into(), "58.395, 57.12, 57.375".into()] {
            assert!(text.contains(&part), "{part}: {text}");
        }
    }
}

#[test]
fn what_is_not_in_the_file_and_what_is_new_in_it_is_said() {
    let temp = tempfile::tempdir().unwrap();
    let at = |part: &str| temp.path().join(part);
    run(&fixture("tec_checkpoint-299.pth"), &at("model"), &four_heads()).unwrap();
    let made = emitted(&at("model"), Layout::Detectron2, None, &at("out.pth")).unwrap();
    let left_out = made.left_out.join("; ");
    for part in ["adapters", "decoder", "the class token", "the final norm"] {
        assert!(left_out.contains(part), "{left_out}");
    }
    assert_eq!(made.added, ["relative positions of zeros"]);
    let made = emitted(&at("model"), Layout::Ibot, None, &at("ibot.pth")).unwrap();
    assert_eq!(made.added.len(), 2);
    assert!(made.added[0].contains("4×4 to 42×68") && made.added[1].contains("yet to be trained"), "{:?}", made.added);
}
