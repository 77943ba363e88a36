//! One file for every image size: the position table resampled in the graph.

use super::{Nano, agrees, file, is_tidy, runtime_options, runtimes, without_candle, write_tensors};
use crate::words::InFull;
use tec_zoo::model::{Canonical, Resample, position};
use tec_zoo::onnx::runtime::{Images, Runtime};
use tec_zoo::onnx::{
    Adapters, CheckOptions, DimInfo, ExportError, ExportOptions, ModelInfo, Purpose, Reference, Size, Target, Tolerance,
};

use crate::quiet::{check, export, open, run};

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
            let mut session = open(runtime, &path, &runtime_options()).unwrap();
            for grid in [[14, 14], [7, 28], [40, 30], [50, 84], [61, 61], [64, 64], [3, 5]] {
                // candle-onnx takes seconds over thousands of tokens, and its matrices are no others.
                if runtime == Runtime::Candle && grid[0] * grid[1] > 1500 {
                    continue;
                }
                let size: [usize; 2] = [grid[0] * 16, grid[1] * 16];
                let outputs = run(&mut session, Images::synthetic(1, size)).unwrap();
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

/// A model of released ViTs' grid, otherwise as small as can be: attention over 4,200 tokens stays cheap.
fn of_real_grid(dir: &std::path::Path, resample: Resample) -> Canonical {
    let image_size = [224, 224];
    Nano { adapters: false, image_size, patch: 16, depth: 1, resample, ..Default::default() }.write(dir)
}

#[test]
fn sizes_people_detect_and_segment_at_come_out_of_one_padded_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "x.onnx");
    let sizes = [[224, 224], [384, 384], [512, 512], [480, 640], [800, 1333], [1024, 1024], [976, 976]];
    for (i, resample) in RULES.into_iter().enumerate() {
        let model = of_real_grid(&file(&dir, &format!("nano{i}")), resample);
        let options = dynamic(Purpose::Levels(vec![0]), Adapters::Drop, Target::Portable);
        export(&model, &path, &ExportOptions { pad: Some(16), ..options }).unwrap();
        // candle-onnx takes seconds for what the others do in a fraction of one.
        let (asked, sizes) = (without_candle(), sizes.to_vec());
        let options = CheckOptions { runtimes: asked.clone(), runtime: runtime_options(), sizes, ..Default::default() };
        let report = check(&path, Reference::Model(&model), &options).unwrap();
        assert_eq!((report.ran().len(), report.runtimes.len()), (asked.len(), asked.len() * 7), "{report:#?}");
        assert_eq!(report.holds, Some(true), "{report:#?}");
    }
}

#[test]
fn padding_adds_zeros_after_normalisation_up_to_the_multiple_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let path = file(&dir, "x.onnx");
    for (pad, shape) in [(8, ["batch", "16", "5", "4"]), (16, ["batch", "16", "6", "4"])] {
        for size in [Size::Fixed([33, 27]), Size::Dynamic] {
            let purpose = Purpose::Levels(vec![3]);
            let options = ExportOptions { purpose, size, pad: Some(pad), ..Default::default() };
            let report = export(&model, &path, &options).unwrap();
            if size != Size::Dynamic {
                assert_eq!(report.outputs[0].shape, shape);
            }
            agrees(&model, &path, [33, 27], &runtimes());
            let info = is_tidy(&path);
            assert_eq!(info.metadata["padding"], pad.to_string());
        }
    }
    for pad in [0, 4, 12] {
        let refused = export(&model, &path, &ExportOptions { pad: Some(pad), ..Default::default() });
        assert!(matches!(refused, Err(ExportError::Padding { patch: 8, .. })), "{refused:?}");
    }
}

#[test]
fn without_padding_a_dynamic_graph_cuts_off_what_is_no_whole_patch() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let path = file(&dir, "x.onnx");
    export(&model, &path, &dynamic(Purpose::Levels(vec![3]), Adapters::Drop, Target::Portable)).unwrap();
    agrees(&model, &path, [39, 31], &runtimes());
}

#[test]
fn another_rule_than_the_familys_is_used_and_written_down() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "x.onnx");
    let model = Nano { resample: Resample::Size, ..Default::default() }.write(&file(&dir, "nano"));
    for size in [Size::Fixed([64, 64]), Size::Dynamic] {
        let resample = Some(Resample::SizeAntialias);
        export(&model, &path, &ExportOptions { resample, size, ..Default::default() }).unwrap();
        agrees(&model, &path, [64, 64], &runtimes());
        assert_eq!(ModelInfo::open(&path).unwrap().metadata["resample"], r#"{"rule":"size-antialias"}"#);
        // The reference goes by what the file says; another rule gives other numbers.
        let other = Nano { resample: Resample::Size, ..Default::default() }.write(&file(&dir, "other"));
        let plain = file(&dir, "plain.onnx");
        export(&other, &plain, &ExportOptions { size, ..Default::default() }).unwrap();
        let values = |path: &std::path::Path| {
            let mut session = open(Runtime::Tract, path, &runtime_options()).unwrap();
            run(&mut session, Images::synthetic(1, [64, 64])).unwrap()[0].values.clone()
        };
        assert_ne!(values(&path), values(&plain));
    }
}

#[test]
fn a_graph_that_normalises_takes_pixels_in_every_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let path = file(&dir, "x.onnx");
    for (size, pad) in [(Size::Native, None), (Size::Dynamic, Some(8))] {
        let options = ExportOptions { normalize_input: true, size, pad, ..Default::default() };
        export(&model, &path, &options).unwrap();
        let info = is_tidy(&path);
        assert_eq!((info.inputs[0].name.as_str(), info.inputs[0].element), ("images", 2));
        assert_eq!(info.metadata["layout"], "uint8 NHWC");
        let options = CheckOptions {
            runtime: runtime_options(),
            runtimes: runtimes(),
            tolerance: Some(Tolerance::MaxAbsDiff(2e-5)),
            ..Default::default()
        };
        let report = check(&path, Reference::Model(&model), &options).unwrap();
        assert!(report.holds == Some(true) && report.ran().len() == runtimes().len(), "{report:#?}");
        let sizes: Vec<[usize; 2]> = report.runtimes.iter().map(|entry| entry.size).collect();
        match size {
            Size::Dynamic => {
                assert!([[32, 24], [48, 48], [36, 60]].iter().all(|size| sizes.contains(size)), "{sizes:?}");
            }
            _ => assert!(sizes.iter().all(|size| *size == [32, 24])),
        }
        let images = Some(Images::synthetic(1, [32, 24]));
        let refused = check(&path, Reference::Model(&model), &CheckOptions { images, ..options });
        assert!(refused.unwrap_err().in_full().contains("u8 pixels"));
    }
}

#[test]
fn a_graph_of_one_size_is_not_checked_at_another() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let path = file(&dir, "x.onnx");
    export(&model, &path, &ExportOptions::default()).unwrap();
    let options = CheckOptions { sizes: vec![[64, 64]], runtimes: vec![Runtime::Tract], ..Default::default() };
    let refused = check(&path, Reference::Model(&model), &options).unwrap_err();
    assert!(refused.in_full().contains("32×24, not 64×64"), "{refused}");
}
