//! Getting a model: download, verify, convert, keep; each step can be cut off anywhere and taken up again.
//!
//! * [`Store`] is the only code that knows where files live. Files are kept under their sha256; nothing enters under
//!   that name before it was computed, and nothing leaves without a look at size, time stamp and chunk hashes.
//! * [`fetch`] brings one model of the catalogue into the store in the common format, trying its sources in turn.
//! * [`Remote`] reads a torch zip where it is: `inspect` of an address, and [`convert_remote`] of one branch of a large file.
//! * [`bundle`] packs chosen models into one archive for a site without a network, and [`unbundle`] takes them in.
//! * [`cache`] lists, verifies, repairs and prunes.
//!
//! What a server says is not believed: lengths, ranges and names are checked, sizes are bounded, no name from a server
//! becomes a path, a redirect never leaves https, and a token goes to its own host only.
//!
//! Every long function hears one thing, `&mut dyn FnMut(`[`Event`]`) -> ControlFlow<()>`: it is called many times a second
//! on the thread that called, and [`ControlFlow::Break`](std::ops::ControlFlow::Break) ends the work within a moment.
//!
//! Locks only save work: two processes that both believe they hold one write the same bytes to the same places, and
//! what enters the store is decided by the hash.

mod address;
mod board;
mod boot;
mod bundle;
pub mod cache;
mod caller;
mod download;
mod error;
mod http;
mod import;
mod lock;
mod make;
mod model;
mod options;
mod part;
mod partial;
mod pins;
mod positioned;
mod remote;
mod retry;
mod store;
mod stream;
mod tree;

pub use bundle::{Bundled, bundle, is_bundle, unbundle};
pub use error::{FetchError, Kind};
pub use import::Origin;
pub use model::{Fetched, fetch, fetch_file, fetch_from};
pub use options::{Checked, Event, Options, Parts, Secret};
pub use partial::{Partial, convert_remote};
pub use remote::Remote;
pub use store::{Blob, Store};
