//! An HTTP server on a real socket that does exactly as badly as it is told.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// A request.
pub(crate) struct Ask {
    /// How many came before it.
    pub(crate) number: usize,
    pub(crate) path: String,
    /// First and last byte of the `Range` header.
    pub(crate) range: Option<(u64, u64)>,
    pub(crate) headers: Vec<(String, String)>,
}

impl Ask {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Whether it is more than the first question, which asks for one byte.
    pub(crate) fn wants_data(&self) -> bool {
        self.range != Some((0, 0))
    }
}

/// How the body goes out.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    None,
    /// The connection is closed after so many bytes.
    Drop(usize),
    /// Nothing more comes after so many bytes.
    Stall(usize),
    /// So many bytes at a time, with a pause between.
    Drip(usize, Duration),
}

/// A response.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// `Content-Length`, when it is not the truth; `Some(None)` leaves it out.
    pub(crate) claims: Option<Option<u64>>,
    pub(crate) fault: Fault,
}

impl Answer {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: b"no".to_vec(), claims: None, fault: Fault::None }
    }

    pub(crate) fn whole(body: &[u8]) -> Self {
        Self { body: body.to_vec(), ..Self::status(200) }
    }

    /// What an honest server says: the part asked for, of the state `etag`.
    pub(crate) fn file(ask: &Ask, body: &[u8], etag: &str) -> Self {
        let total = body.len() as u64;
        let fresh = ask.header("If-Range").is_none_or(|tag| tag == etag);
        let answer = match ask.range.filter(|_| fresh) {
            None => Self::whole(body),
            Some((first, _)) if first >= total => {
                Self::status(416).header("Content-Range", &format!("bytes */{total}"))
            }
            Some((first, last)) => {
                let last = last.min(total - 1);
                let part = Self { status: 206, ..Self::whole(&body[first as usize..=last as usize]) };
                part.header("Content-Range", &format!("bytes {first}-{last}/{total}"))
            }
        };
        if etag.is_empty() { answer } else { answer.header("ETag", etag) }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same as a 206.
    pub(crate) fn into_part(mut self) -> Self {
        self.status = 206;
        self
    }

    pub(crate) fn fault(mut self, fault: Fault) -> Self {
        self.fault = fault;
        self
    }
}

/// Counters every connection adds to.
#[derive(Default)]
struct Counts {
    requests: AtomicUsize,
    /// Bytes of bodies handed to the system.
    sent: AtomicU64,
    stop: AtomicBool,
}

pub(crate) struct Server {
    address: SocketAddr,
    counts: Arc<Counts>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Ask) -> Answer + Send + Sync + 'static) -> Self {
        Self::speaking(answer, |stream| {
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        })
    }

    /// A server whose certificate is signed by an authority no system trusts.
    pub(crate) fn start_tls(answer: impl Fn(&Ask) -> Answer + Send + Sync + 'static) -> Self {
        let file = |name: &str| {
            std::fs::read(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tls").join(name)).unwrap()
        };
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(file("server.key.der"));
        let config = rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![file("server.der").into()], key.into())
            .unwrap();
        let config = Arc::new(config);
        Self::speaking(answer, move |stream| {
            let session = rustls::ServerConnection::new(Arc::clone(&config)).map_err(std::io::Error::other)?;
            Ok(Box::new(rustls::StreamOwned::new(session, stream)))
        })
    }

    fn speaking(
        answer: impl Fn(&Ask) -> Answer + Send + Sync + 'static,
        speak: impl Fn(TcpStream) -> std::io::Result<Box<dyn Stream>> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::new(Counts::default());
        let (shared, answer, speak) = (Arc::clone(&counts), Arc::new(answer), Arc::new(speak));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stop.load(Ordering::Relaxed) {
                    return;
                }
                let (shared, answer, speak) = (Arc::clone(&shared), Arc::clone(&answer), Arc::clone(&speak));
                let talk = move || serve(&mut *speak(stream?)?, &shared, &*answer);
                // A client that goes away is what is being tested.
                std::thread::spawn(move || drop(talk()));
            }
        });
        Self { address, counts }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn requests(&self) -> usize {
        self.counts.requests.load(Ordering::SeqCst)
    }

    pub(crate) fn sent(&self) -> u64 {
        self.counts.sent.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.counts.stop.store(true, Ordering::Relaxed);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
    }
}

/// What a conversation runs over.
trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

fn serve(stream: &mut dyn Stream, counts: &Counts, answer: &dyn Fn(&Ask) -> Answer) -> std::io::Result<()> {
    let mut pending = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = pending.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            let mut buffer = [0; 4096];
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                read => pending.extend_from_slice(&buffer[..read]),
            }
        };
        let head: Vec<u8> = pending.drain(..end).collect();
        let Some(ask) = parse(&String::from_utf8_lossy(&head), counts) else { return Ok(()) };
        let answer = answer(&ask);
        let length = answer.claims.unwrap_or(Some(answer.body.len() as u64));
        let mut text = format!("HTTP/1.1 {} .\r\n", answer.status);
        for (name, value) in &answer.headers {
            text += &format!("{name}: {value}\r\n");
        }
        match length {
            Some(length) => text += &format!("Content-Length: {length}\r\n\r\n"),
            None => text += "Connection: close\r\n\r\n",
        }
        stream.write_all(text.as_bytes())?;
        let whole = send(stream, &answer, counts)?;
        if !whole || length != Some(answer.body.len() as u64) {
            return Ok(());
        }
    }
}

/// Whether the connection is still good afterwards.
fn send(stream: &mut dyn Stream, answer: &Answer, counts: &Counts) -> std::io::Result<bool> {
    let (step, pause) = match answer.fault {
        Fault::Drip(step, pause) => (step, pause),
        _ => (64 << 10, Duration::ZERO),
    };
    let until = match answer.fault {
        Fault::Drop(bytes) | Fault::Stall(bytes) => bytes.min(answer.body.len()),
        Fault::None | Fault::Drip(..) => answer.body.len(),
    };
    for piece in answer.body[..until].chunks(step) {
        stream.write_all(piece)?;
        counts.sent.fetch_add(piece.len() as u64, Ordering::SeqCst);
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        if counts.stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
    }
    if matches!(answer.fault, Fault::Stall(_)) {
        while !counts.stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(matches!(answer.fault, Fault::None | Fault::Drip(..)))
}

fn parse(head: &str, counts: &Counts) -> Option<Ask> {
    let mut lines = head.split("\r\n");
    let path = lines.next()?.split(' ').nth(1)?.trim_start_matches('/').to_owned();
    let headers: Vec<(String, String)> =
        lines.filter_map(|line| line.split_once(": ")).map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let range = headers.iter().find(|(key, _)| key.eq_ignore_ascii_case("range")).and_then(|(_, value)| {
        let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    });
    Some(Ask { number: counts.requests.fetch_add(1, Ordering::SeqCst), path, range, headers })
}
