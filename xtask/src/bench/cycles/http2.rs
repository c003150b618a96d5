//! A caller by HTTP/2, on a connection that is kept until the other side takes leave.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::Result;
use h2::client::{Builder, SendRequest};
use h2::{Reason, RecvStream};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::net::TcpStream;
use tokio::runtime::{self, Runtime};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::wire::{Answer, Failure, PATIENCE, Wait, count, not_ok};

type Sender = SendRequest<&'static [u8]>;

/// So often a request is moved to another connection before that is a failure.
const MOVES_MAX: usize = 3;

/// The caller with its connection.
pub(super) struct Caller {
    runtime: Runtime,
    address: SocketAddr,
    kept: Option<Kept>,
}

/// A connection that serves the next request, too.
struct Kept {
    sender: Sender,
    /// The same socket, to look at.
    socket: OwnedFd,
    /// Reads and writes it.
    task: JoinHandle<()>,
}

/// How a request came to its answer.
#[derive(Debug, Default)]
pub(super) struct Ways {
    /// The kept connection was found closed.
    pub(super) found_closed: bool,
    /// Connections that took leave and left the request to another one.
    pub(super) moved: usize,
}

/// What became of one try.
enum Tried {
    Answered(Answer),
    /// The other side says that it has not begun with it.
    Moved,
}

impl Caller {
    pub(super) fn new(address: SocketAddr) -> Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, address, kept: None })
    }

    /// Waits; the connection is served meanwhile.
    pub(super) fn rest(&self, pause: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(pause).await });
    }

    /// Gives the connection up.
    pub(super) fn forget(&mut self) {
        self.kept = None;
    }

    pub(super) fn ask(&mut self, ways: &mut Ways) -> Result<Answer, Failure> {
        let (kept, address) = (self.kept.take(), self.address);
        let asked = async { timeout(PATIENCE, ask(kept, address, ways)).await };
        let asked = self.runtime.block_on(asked);
        let silence =
            |_elapsed| Failure::of("waiting for the answer", &io::ErrorKind::TimedOut.into());
        let (kept, answer) = asked.map_err(silence)??;
        self.kept = Some(kept);
        Ok(answer)
    }
}

async fn ask(
    mut kept: Option<Kept>,
    address: SocketAddr,
    ways: &mut Ways,
) -> Result<(Kept, Answer), Failure> {
    for _ in 0..MOVES_MAX {
        let open = match kept.take() {
            // It is closed, or its other side has taken leave, and nothing was sent.
            Some(kept) => {
                let open = kept.open().await;
                ways.found_closed |= open.is_none();
                open
            }
            None => None,
        };
        let mut kept = match open {
            Some(kept) => kept,
            None => connect(address).await?,
        };
        match request(&mut kept.sender).await? {
            Tried::Answered(answer) => return Ok((kept, answer)),
            Tried::Moved => ways.moved += 1,
        }
    }
    Err(Failure::wrong("asking", "moved too often", String::new()))
}

impl Kept {
    /// Itself, if it is open as far as anybody here can know: its task may not have run since its end came.
    async fn open(self) -> Option<Self> {
        loop {
            match recv(&self.socket, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN) => break,
                Ok((0, _)) | Err(_) => return None,
                Ok(_) if self.task.is_finished() => return None,
                Ok(_) => tokio::task::yield_now().await,
            }
        }
        let sender = self.sender.ready().await.ok()?;
        Some(Self { sender, ..self })
    }
}

async fn connect(address: SocketAddr) -> Result<Kept, Failure> {
    let failed = |error| Failure::of("connecting", &error);
    let stream = TcpStream::connect(address).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let socket = stream.as_fd().try_clone_to_owned().map_err(failed)?;
    let (sender, connection) =
        Builder::new().handshake(stream).await.map_err(|error| of("connecting", error))?;
    // Its end shows at the requests.
    let task = tokio::spawn(async { drop(connection.await) });
    let sender = sender.ready().await.map_err(|error| of("connecting", error))?;
    Ok(Kept { sender, socket, task })
}

async fn request(sender: &mut Sender) -> Result<Tried, Failure> {
    let request = http::Request::builder().uri("http://cycles/").body(());
    let request = request.map_err(|error| not_ok(&error.to_string()))?;
    let response = match sender.send_request(request, true) {
        Ok((response, _body)) => response.await,
        Err(error) => Err(error),
    };
    let response = match response {
        Ok(response) => response,
        Err(error) if is_moved(&error) => return Ok(Tried::Moved),
        Err(error) => return Err(of("waiting for the answer", error)),
    };
    let header = response.headers().get("perch-wake");
    let wait = Wait::of(header.and_then(|value| value.to_str().ok()));
    let status = response.status();
    let body =
        read(response.into_body()).await.map_err(|error| of("reading the answer's body", error))?;
    match count(&body) {
        Some(count) if status == 200 => Ok(Tried::Answered(Answer { wait, closes: false, count })),
        _ => Err(not_ok(&format!("{status} {}", body.trim()))),
    }
}

/// RFC 9113, 6.8 and 8.7: such a request may be sent again, whatever it is.
fn is_moved(error: &h2::Error) -> bool {
    let left = error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR);
    left || error.reason() == Some(Reason::REFUSED_STREAM)
}

async fn read(mut body: RecvStream) -> Result<String, h2::Error> {
    let mut text = Vec::new();
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        text.extend_from_slice(&part);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn of(phase: &'static str, error: h2::Error) -> Failure {
    let text = error.to_string();
    match error.into_io() {
        Some(error) => Failure::of(phase, &error),
        None => Failure::wrong(phase, "an error of HTTP/2", text),
    }
}
