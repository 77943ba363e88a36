//! One file for every image size: the position table resampled in the graph.

use super::{Nano, agrees, file, is_tidy, runtime_options, runtimes, without_candle, write_tensors};
use tec_zoo::model::{Canonical, Resample, position};
use tec_zoo::onnx::runtime::{Images, Session};
use tec_zoo::onnx::{Adapters, DimInfo, ExportOptions, Purpose, Size, Target, export};

const RULES: [Resample; 3] = [Resample::Size, Resample::ScaleOffset { offset: 0.1 }, Resample::SizeAntialias];

fn dynamic(purpose: Purpose, adapters: Adapters, target: Target) -> ExportOptions {
    ExportOptions { purpose, adapters, target, size: Size::Dynamic, ..Default::default() }
}

#[test]
fn a_dynamic_graph_gives_the_eager_forwards_numbers_at_every_size_in_every_variant() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "x.onnx");
    for (i, resample) in RULES.into_iter().enumerate() {
        let plain = Nano { resample, ..Default::default() }.write(&file(&dir, &format!("plain{i}")));
        let registers = Nano { resample, ..Nano::dinov2() }.write(&file(&dir, &format!("registers{i}")));
        for (model, adapters) in [(&plain, Adapters::Keep), (&registers, Adapters::Drop)] {
            for purpose in [Purpose::Tokens, Purpose::Classification, Purpose::Levels(vec![1, 5])] {
                let adapters = if purpose == Purpose::Tokens { adapters } else { Adapters::Drop };
                for (target, able) in [(Target::Portable, runtimes()), (Target::Ort, without_candle())] {
                    export(model, &path, &dynamic(purpose.clone(), adapters, target)).unwrap();
                    // Native, larger, smaller than the table, a strip.
                    for size in [[32, 24], [64, 56], [16, 16], [8, 120]] {
                        agrees(model, &path, size, &able);
                    }
                    is_tidy(&path);
                }
            }
        }
    }
}

#[test]
fn axes_that_are_free_have_names() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let path = file(&dir, "x.onnx");
    let report = export(&model, &path, &dynamic(Purpose::Tokens, Adapters::Drop, Target::Portable)).unwrap();
    assert_eq!(report.outputs[0].shape, ["batch", "tokens", "16"]);
    let info = is_tidy(&path);
    let name = |name: &str| DimInfo::Name(name.to_owned());
    assert_eq!(info.inputs[0].dims, [name("batch"), DimInfo::Size(3), name("height"), name("width")]);
    assert_eq!(info.metadata["image_size"], "any");
    assert!(!info.nodes.iter().any(|node| node.operator == "Resize"));
    let report = export(&model, &path, &dynamic(Purpose::Levels(vec![2]), Adapters::Drop, Target::Portable)).unwrap();
    assert_eq!(report.outputs[0].shape, ["batch", "16", "rows", "columns"]);
}

/// A model of one block that adds nothing, so that its output is its position table.
fn only_positions(dir: &std::path::Path, resample: Resample) -> Canonical {
    let nano = Nano {
        adapters: false,
        final_norm: false,
        image_size: [224, 224],
        patch: 16,
        depth: 1,
        resample,
        ..Default::default()
    };
    let config = nano.write(dir).config().clone();
    let mut seed = 3;
    write_tensors(&dir.join("model.safetensors"), &config.vit, |name, count| match name {
        "pos_embed" => super::noise(count, &mut seed).into_iter().map(|value| value * 2.0).collect(),
        _ => vec![0.0; count],
    });
    Canonical::open(dir).unwrap()
}

#[test]
fn a_table_made_in_the_graph_is_the_one_made_in_f64() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "x.onnx");
    for (i, rule) in RULES.into_iter().enumerate() {
        let model = only_positions(&file(&dir, &format!("nano{i}")), rule);
        let values =
            |bytes: &[u8]| -> Vec<f32> { bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect() };
        let table = values(model.get("pos_embed").unwrap().bytes);
        export(&model, &path, &dynamic(Purpose::Tokens, Adapters::Drop, Target::Portable)).unwrap();
        for runtime in runtimes() {
            let mut session = Session::open(runtime, &path, &runtime_options()).unwrap();
            for grid in [[14, 14], [7, 28], [40, 30], [50, 84], [61, 61], [64, 64], [3, 5]] {
                let size: [usize; 2] = [grid[0] * 16, grid[1] * 16];
                let outputs = session.run(&Images::synthetic(1, size)).unwrap();
                let expected = match position::is_native([14, 14], grid) {
                    true => table.clone(),
                    false => position::resample(&table, 16, [14, 14], grid, rule).unwrap(),
                };
                let worst = outputs[0].values.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert_eq!(outputs[0].values.len(), expected.len());
                // Of values up to 1: a weight's rounding is 2⁻²⁴ times a few.
                assert!(worst <= 4e-6, "{runtime} {rule:?} {grid:?}: {worst:e}");
                if grid == [14, 14] {
                    assert!(worst == 0.0, "{runtime} {rule:?}: the native table is moved by {worst:e}");
                }
            }
        }
    }
}
