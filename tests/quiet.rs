//! The library's long functions with nobody listening, which is how most tests call them.

use std::ops::ControlFlow;
use std::path::Path;

use tec_zoo::destination::Destination;
use tec_zoo::model::Canonical;
use tec_zoo::onnx::runtime::{Images, Output, Runtime, RuntimeError, RuntimeOptions, Session};
use tec_zoo::onnx::{self, CheckError, CheckOptions, CheckReport, ExportError, ExportOptions, ExportReport, Reference};

pub(crate) fn export(
    model: &Canonical,
    out: impl Into<Destination>,
    options: &ExportOptions,
) -> Result<ExportReport, ExportError> {
    // Into scratch folders, where a test's next export takes the place of its last.
    onnx::export(model, out.into().overwrite(true), options, &mut |_| ControlFlow::Continue(()))
}

pub(crate) fn check(path: &Path, reference: Reference<'_>, options: &CheckOptions) -> Result<CheckReport, CheckError> {
    onnx::check(path, reference, options, &mut |_| ControlFlow::Continue(()))
}

pub(crate) fn open(runtime: Runtime, path: &Path, options: &RuntimeOptions) -> Result<Session, RuntimeError> {
    Session::open(runtime, path, options, &mut |_| ControlFlow::Continue(()))
}

pub(crate) fn run(session: &mut Session, images: Images) -> Result<Vec<Output>, RuntimeError> {
    session.run(images, &mut |_| ControlFlow::Continue(()))
}
