//! DNS for Machines: our own names from what the server told us, by the asker's network; everything
//! else goes to the host's resolvers (PN-20..48, FC-04).
//!
//! `perch_core::dns` decides what is answered; here are the sockets, the wire format, truncation, and
//! forwarding. Questions from addresses of no network of ours are refused.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use perch_core::dns::{self, Asker, Transport};
use perch_core::ids::{NetworkId, Region};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, spawn_local};

use crate::directory::Directory;
use crate::dns::forward::{Forwarder, Leave};
use crate::dns::udp::{Ends, Questions};
use crate::dns::wire::{Question, Verdict};
use crate::server::Open;
use crate::{Listeners, ProxyError, clock, server};

mod dialler;
mod forward;
mod udp;
pub(crate) mod wire;
mod zones;

/// Largest question; ours are below 300 bytes.
const QUESTION_BYTES_MAX: usize = 4096;
/// TCP connections at once.
const TCP_CONNECTIONS_MAX: usize = 256;
/// A TCP connection may be silent for so long.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// Answers questions, whatever brought them.
pub(crate) struct Resolver {
    directory: Rc<Directory>,
    forwarder: Forwarder,
    zones: RefCell<zones::Cache>,
    /// Dropped with the last question.
    _open: Open,
}

/// Begins to answer on the sockets that were handed over.
pub(crate) fn start(
    listeners: &Listeners,
    directory: &Rc<Directory>,
    open: Open,
) -> Result<[AbortHandle; 2], ProxyError> {
    let failed = |name| move |source| ProxyError::Listener { name, source };
    let forwarder = Forwarder::start(listeners).map_err(failed("DNS forwarding"))?;
    let zones = RefCell::default();
    let resolver =
        Rc::new(Resolver { directory: Rc::clone(directory), forwarder, zones, _open: open });
    let udp = Questions::new(&listeners.dns_udp).map_err(failed("DNS over UDP"))?;
    let tcp = server::tcp_listener(&listeners.dns_tcp).map_err(failed("DNS over TCP"))?;
    let udp = spawn_local(serve_udp(Rc::new(udp), Rc::clone(&resolver)));
    let tcp = spawn_local(serve_tcp(tcp, resolver));
    Ok([udp.abort_handle(), tcp.abort_handle()])
}

pub(crate) fn udp_socket(fd: &std::os::fd::OwnedFd) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::from(fd.try_clone()?);
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

impl Resolver {
    /// Decides about one message; forwarding is still to be done.
    fn decide(&self, bytes: &[u8], from: SocketAddr, transport: Transport) -> Verdict {
        let question = match Question::parse(bytes) {
            Ok(question) => question,
            Err(verdict) => return verdict,
        };
        let network = self.directory.network_of(from.ip()).and_then(NetworkId::new);
        let Some(network) = network else { return question.refused() };
        let region = self.directory.region().parse().unwrap_or(Region::LOCAL);
        let asker = Asker { network, region, transport, random: clock::random() };
        let zones = self.zones.borrow_mut().get(&self.directory);
        let answer = dns::answer(&question.name(), question.kind(), asker, &zones);
        question.answered(answer, transport)
    }

    fn leave(&self, from: SocketAddr) -> Option<Leave> {
        let network = self.directory.network_of(from.ip())?;
        self.forwarder.leave(network, from.ip())
    }

    async fn forward(&self, question: Box<Question>, transport: Transport) -> Option<Vec<u8>> {
        let resolvers = self.directory.resolvers();
        match self.forwarder.ask(&question, &resolvers, transport).await {
            Some(answer) => Some(answer),
            None => question.failed(),
        }
    }
}

async fn serve_udp(socket: Rc<Questions>, resolver: Rc<Resolver>) {
    let mut buffer = vec![0; QUESTION_BYTES_MAX];
    loop {
        let (length, ends) = match socket.receive(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // Errors of former answers (an asker that went away) are reported here too.
                tracing::debug!(%error, "could not receive a DNS question");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let from = ends.from;
        match resolver.decide(&buffer[..length], from, Transport::Udp) {
            Verdict::Reply(answer) => send(&socket, &answer, ends).await,
            Verdict::Silence => {}
            Verdict::Forward(question) => {
                let Some(leave) = resolver.leave(from) else {
                    if let Some(answer) = question.failed() {
                        send(&socket, &answer, ends).await;
                    }
                    continue;
                };
                let (socket, resolver) = (Rc::clone(&socket), Rc::clone(&resolver));
                spawn_local(async move {
                    if let Some(answer) = resolver.forward(question, Transport::Udp).await {
                        send(&socket, &answer, ends).await;
                    }
                    drop(leave);
                });
            }
        }
    }
}

async fn send(socket: &Questions, answer: &[u8], ends: Ends) {
    if let Err(error) = socket.answer(answer, ends).await {
        tracing::debug!(%error, to = %ends.from, "could not send a DNS answer");
    }
}

async fn serve_tcp(listener: TcpListener, resolver: Rc<Resolver>) {
    let limit = Rc::new(Semaphore::new(TCP_CONNECTIONS_MAX));
    loop {
        let accepted = listener.accept().await;
        let Ok((stream, from)) = accepted else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let resolver = Rc::clone(&resolver);
        let limit = Rc::clone(&limit);
        spawn_local(async move {
            // Beyond the limit a connection is closed at once; the asker tries again.
            let Ok(_permit) = limit.try_acquire() else { return };
            if let Err(error) = serve_stream(stream, from, &resolver).await {
                tracing::debug!(%error, %from, "a DNS connection ended");
            }
        });
    }
}

/// Questions of one connection, one after the other.
async fn serve_stream(
    mut stream: TcpStream,
    from: SocketAddr,
    resolver: &Resolver,
) -> io::Result<()> {
    loop {
        let question = tokio::time::timeout(TCP_IDLE, read_framed(&mut stream)).await??;
        let Some(question) = question else { return Ok(()) };
        let answer = match resolver.decide(&question, from, Transport::Tcp) {
            Verdict::Reply(answer) => Some(answer),
            Verdict::Silence => None,
            Verdict::Forward(question) => match resolver.leave(from) {
                Some(_leave) => resolver.forward(question, Transport::Tcp).await,
                None => question.failed(),
            },
        };
        let Some(answer) = answer else { return Ok(()) };
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&answer);
        stream.write_all(&framed).await?;
    }
}

async fn read_framed(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if QUESTION_BYTES_MAX < length {
        return Err(io::Error::other("a DNS question is too long"));
    }
    let mut question = vec![0; length];
    stream.read_exact(&mut question).await?;
    Ok(Some(question))
}
