//! One request: what is asked, and what of the answer can be believed.

use std::io::Read;
use std::sync::Once;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, IF_RANGE,
    LAST_MODIFIED, RANGE, RETRY_AFTER, TRANSFER_ENCODING,
};
use reqwest::{Client, Response, StatusCode, Url, redirect};

use super::caller::{Caller, TICK};
use super::retry::Failure;
use super::{Options, address};
use crate::zoo::Source;

const MAX_REDIRECTS: usize = 10;

/// Clients for the world and for this machine, whose own servers no proxy can reach.
pub(super) struct Http<'a> {
    options: &'a Options,
    world: Client,
    local: Client,
    network: Network,
}

/// The thread that connections live on. Whoever waits for one looks at the caller's wish meanwhile, and what nobody waits
/// for any more is dropped, however silent the server.
struct Network {
    handle: tokio::runtime::Handle,
    /// The thread ends when this is dropped.
    _open: tokio::sync::oneshot::Sender<()>,
}

impl Network {
    fn start() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (open, closed) = tokio::sync::oneshot::channel();
        std::thread::Builder::new().name("network".to_owned()).spawn(move || {
            // An error is the end that is waited for: nothing is ever sent.
            let _ = runtime.block_on(closed);
            // A name that is still being looked up must hold nobody back.
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, _open: open })
    }

    /// Waits for `future`, as long as the caller goes along.
    fn wait<T>(&self, caller: &Caller, future: impl Future<Output = T>) -> Result<T, Failure> {
        self.handle.block_on(async {
            let mut future = std::pin::pin!(future);
            loop {
                caller.check().map_err(Failure::Local)?;
                if let Ok(done) = tokio::time::timeout(TICK, future.as_mut()).await {
                    return Ok(done);
                }
            }
        })
    }
}

/// The body of an answer, as it comes.
pub(super) struct Body<'a> {
    network: &'a Network,
    caller: &'a Caller,
    response: Response,
    /// What has come and was not read yet.
    left: Bytes,
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.left.is_empty() {
            match self.network.wait(self.caller, self.response.chunk()) {
                Ok(Ok(Some(bytes))) => self.left = bytes,
                Ok(Ok(None)) => return Ok(0),
                Ok(Err(error)) => return Err(std::io::Error::other(describe(error))),
                // Whoever reads asks the caller and learns why.
                Err(_) => return Err(std::io::Error::other("interrupted")),
            }
        }
        let read = self.left.len().min(buffer.len());
        self.left.copy_to_slice(&mut buffer[..read]);
        Ok(read)
    }
}

/// An answer that carries a body.
pub(super) struct Reply<'a> {
    /// First and last byte, and size of the whole: the `Content-Range` of a 206.
    pub range: Option<(u64, u64, u64)>,
    /// `Content-Length`, when the body is not encoded.
    pub length: Option<u64>,
    /// Whether the end of the body can be told from a broken connection.
    pub delimited: bool,
    /// Which state of the file this is.
    pub validator: Validator,
    /// `Content-Encoding`, when there is one.
    pub encoding: Option<String>,
    /// The body.
    pub body: Body<'a>,
}

/// What a server says to tell one state of a file from another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Validator {
    pub etag: Option<String>,
    pub modified: Option<String>,
}

impl Validator {
    /// Whether there is anything to tell states apart by.
    pub(super) fn is_some(&self) -> bool {
        self.etag.is_some() || self.modified.is_some()
    }

    /// Whether both say something and disagree.
    pub(super) fn contradicts(&self, other: &Self) -> bool {
        let differ = |a: &Option<String>, b: &Option<String>| matches!((a, b), (Some(a), Some(b)) if a != b);
        match (&self.etag, &other.etag) {
            (Some(a), Some(b)) => a != b,
            _ => differ(&self.modified, &other.modified),
        }
    }

    /// A value for `If-Range`: weak tags are not allowed there.
    fn if_range(&self) -> Option<&str> {
        let strong = self.etag.as_deref().filter(|etag| !etag.starts_with("W/"));
        strong.or(self.modified.as_deref())
    }
}

impl<'a> Http<'a> {
    pub(super) fn new(options: &'a Options) -> Result<Self, Failure> {
        static PROVIDER: Once = Once::new();
        // Fails only if the program has chosen one already, which then serves.
        PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
        let allow_http = options.allow_http;
        let builder = || {
            Client::builder()
                .user_agent(concat!("tec-zoo/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(options.connect_timeout)
                // For each read, not for the whole.
                .read_timeout(options.stall)
                .redirect(redirect::Policy::custom(move |attempt| {
                    if attempt.previous().len() > MAX_REDIRECTS {
                        return attempt.error(format!("redirected more than {MAX_REDIRECTS} times"));
                    }
                    // Once on https, always on https; and from here to the outside only by https.
                    let was_https = attempt.previous().iter().any(|url| url.scheme() == "https");
                    let plain = attempt.url().scheme() != "https";
                    if !address::is_secure(attempt.url(), allow_http) || (was_https && plain) {
                        return attempt.error("redirected away from https");
                    }
                    attempt.follow()
                }))
        };
        let failed = |why: String| Failure::Refused(format!("cannot set up the client: {why}"));
        Ok(Self {
            options,
            world: builder().build().map_err(|error| failed(describe(error)))?,
            local: builder().no_proxy().build().map_err(|error| failed(describe(error)))?,
            network: Network::start().map_err(|error| failed(error.to_string()))?,
        })
    }

    /// Asks for `range` (first byte, last byte) of `target`, or for all of it.
    pub(super) fn get<'b>(
        &'b self,
        target: &str,
        range: Option<(u64, u64)>,
        validator: Option<&Validator>,
        caller: &'b Caller,
    ) -> Result<Reply<'b>, Failure> {
        let url = Url::parse(target).map_err(|error| Failure::Refused(format!("not an address: {error}")))?;
        if !address::is_secure(&url, self.options.allow_http) {
            return Err(Failure::Refused("only https is accepted from other machines".into()));
        }
        let client = if address::is_local(&url) { &self.local } else { &self.world };
        // Hash and length are of the file as it is, so no encoding on the way.
        let mut request = client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
        if let Some((first, last)) = range {
            request = request.header(RANGE, format!("bytes={first}-{last}"));
            if let Some(validator) = validator.and_then(Validator::if_range) {
                request = request.header(IF_RANGE, validator);
            }
        }
        if let Some(token) = &self.options.token
            && self.is_hub(&url)
        {
            let mut value = reqwest::header::HeaderValue::try_from(format!("Bearer {}", token.reveal()))
                .map_err(|_| Failure::Refused("the token holds characters no header can carry".into()))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        // Only within the network's thread's context may the request begin.
        let response = self.network.wait(caller, async { request.send().await })?.map_err(|error| {
            // None of these is better a moment later.
            match error.is_redirect() || error.is_builder() || is_untrusted(&error) {
                true => Failure::Refused(describe(error)),
                false => Failure::transient(describe(error)),
            }
        })?;
        read(response, &self.network, caller)
    }

    fn is_hub(&self, url: &Url) -> bool {
        let hub = Url::parse(self.options.hub.as_deref().unwrap_or(Source::HUB));
        hub.is_ok_and(|hub| hub.origin() == url.origin())
    }
}

fn read<'a>(response: Response, network: &'a Network, caller: &'a Caller) -> Result<Reply<'a>, Failure> {
    let headers = response.headers();
    match response.status() {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => {}
        StatusCode::RANGE_NOT_SATISFIABLE => {
            let says = text(headers, &CONTENT_RANGE).unwrap_or_else(|| "nothing more".into());
            return Err(Failure::Changed(format!("the server has no such range (416); it says {says}")));
        }
        status if status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::REQUEST_TIMEOUT => {
            return Err(Failure::Transient { reason: format!("the server says {status}"), wait: retry_after(headers) });
        }
        status if status.is_server_error() => {
            return Err(Failure::Transient { reason: format!("the server says {status}"), wait: retry_after(headers) });
        }
        StatusCode::UNAUTHORIZED => {
            return Err(Failure::Refused(
                "the server wants a login (401); set HF_TOKEN for gated models on the hub".into(),
            ));
        }
        status => return Err(Failure::Refused(format!("the server says {status}"))),
    }
    let range = match response.status() {
        StatusCode::PARTIAL_CONTENT => Some(
            text(headers, &CONTENT_RANGE)
                .as_deref()
                .and_then(content_range)
                .ok_or_else(|| Failure::transient("the server sent a part without saying which"))?,
        ),
        _ => None,
    };
    let encoding = text(headers, &CONTENT_ENCODING).map(|e| e.to_ascii_lowercase()).filter(|e| e != "identity");
    let length = response.content_length().filter(|_| encoding.is_none());
    let chunked = headers.contains_key(TRANSFER_ENCODING) || response.version() == reqwest::Version::HTTP_2;
    Ok(Reply {
        range,
        length,
        delimited: chunked || response.content_length().is_some(),
        validator: Validator { etag: text(headers, &ETAG), modified: text(headers, &LAST_MODIFIED) },
        encoding,
        body: Body { network, caller, response, left: Bytes::new() },
    })
}

/// `bytes 0-99/1234`, with its numbers in order.
fn content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, total) = (first.trim().parse().ok()?, last.trim().parse().ok()?, total.trim().parse().ok()?);
    (first <= last && last < total).then_some((first, last, total))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    text(headers, &RETRY_AFTER)?.trim().parse().ok().map(Duration::from_secs)
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    // A header is kept in the journal: no longer than a line may be, and one line.
    let text = headers.get(name)?.to_str().ok()?;
    (text.len() <= 1024).then(|| text.to_owned())
}

/// Whether the server's certificate was not accepted.
fn is_untrusted(error: &reqwest::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        // An I/O error does not give what is inside it as its source.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

/// The error with its causes, without the address (which may carry a signature).
fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        let line = error.to_string();
        if !text.contains(&line) {
            text = format!("{text}: {line}");
        }
        cause = error.source();
    }
    text
}

/// Reads from a body until `buffer` holds something; an end is `Ok(0)`.
pub(super) fn read_some(body: &mut dyn Read, buffer: &mut [u8], caller: &Caller) -> Result<usize, Failure> {
    loop {
        match body.read(buffer) {
            Ok(read) => return Ok(read),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                caller.check().map_err(Failure::Local)?;
                return Err(Failure::transient(error.to_string()));
            }
        }
    }
}
