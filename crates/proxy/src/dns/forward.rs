//! Questions that are not ours, asked of the host's resolvers through sockets of the host's network
//! namespace: by UDP what came by UDP, by TCP what came by TCP.
//!
//! Each question goes out under an id that cannot be guessed; an answer counts only if it comes from
//! the resolver that was asked, carries that id, and repeats the question.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use perch_core::dns::Transport;
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tokio::time::Instant;

use super::dialler::Dialler;
use super::udp_socket;
use super::wire::Question;
use crate::shares::{Share, Shares};
use crate::{Listeners, clock};

/// An asker gives up after 5 s.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(5);
/// A resolver has so long before the next one is asked.
const TRY_TIMEOUT: Duration = Duration::from_millis(1200);
/// Questions waiting for resolvers; more are answered with a failure at once.
const PENDING_MAX: usize = 1024;
/// Those of one network, and of one asker: a Machine that asks without end takes nothing from others.
const PENDING_OF_NETWORK_MAX: usize = PENDING_MAX / 4;
const PENDING_OF_ASKER_MAX: usize = 64;
/// Longest answer.
const ANSWER_BYTES_MAX: usize = 4096;

type Pending = RefCell<HashMap<(SocketAddr, u16), oneshot::Sender<Vec<u8>>>>;

/// See the module's head.
pub(crate) struct Forwarder {
    v4: Rc<UdpSocket>,
    v6: Rc<UdpSocket>,
    tcp_v4: Dialler,
    tcp_v6: Dialler,
    pending: Rc<Pending>,
    all: Rc<Shares<()>>,
    networks: Rc<Shares<u32>>,
    askers: Rc<Shares<IpAddr>>,
}

/// Leave to forward one question.
pub(crate) struct Leave {
    _shares: (Share<()>, Share<u32>, Share<IpAddr>),
}

/// Why a resolver's answer did not come.
enum NoAnswer {
    /// We could not even ask.
    Unasked,
    /// What came was no answer.
    Unusable,
}

impl Forwarder {
    pub(crate) fn start(listeners: &Listeners) -> io::Result<Self> {
        let v4 = Rc::new(udp_socket(&listeners.forward_v4)?);
        let v6 = Rc::new(udp_socket(&listeners.forward_v6)?);
        let tcp_v4 = Dialler::new(&listeners.forward_tcp_v4)?;
        let tcp_v6 = Dialler::new(&listeners.forward_tcp_v6)?;
        let pending = Rc::<Pending>::default();
        for socket in [&v4, &v6] {
            spawn_local(receive(Rc::clone(socket), Rc::clone(&pending)));
        }
        let all = Shares::new(PENDING_MAX);
        let networks = Shares::new(PENDING_OF_NETWORK_MAX);
        let askers = Shares::new(PENDING_OF_ASKER_MAX);
        Ok(Self { v4, v6, tcp_v4, tcp_v6, pending, all, networks, askers })
    }

    /// `None`: too many questions wait already, of this asker, its network, or all together.
    pub(crate) fn leave(&self, network: u32, asker: IpAddr) -> Option<Leave> {
        let (all, networks) = (self.all.take(())?, self.networks.take(network)?);
        Some(Leave { _shares: (all, networks, self.askers.take(asker)?) })
    }

    /// Asks one resolver after the other; `None` if nobody answered in time, or could be asked.
    pub(crate) async fn ask(
        &self,
        question: &Question,
        resolvers: &[SocketAddr],
        transport: Transport,
    ) -> Option<Vec<u8>> {
        let deadline = Instant::now() + TOTAL_TIMEOUT;
        let mut unasked = 0;
        for resolver in resolvers.iter().cycle() {
            let until = deadline.min(Instant::now() + TRY_TIMEOUT);
            let tried = async {
                match transport {
                    Transport::Udp => self.ask_by_udp(question, *resolver).await,
                    Transport::Tcp => self.ask_by_tcp(question, *resolver).await,
                }
            };
            match tokio::time::timeout_at(until, tried).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(NoAnswer::Unasked)) => unasked += 1,
                Ok(Err(NoAnswer::Unusable)) | Err(_) => unasked = 0,
            }
            // Without a way to any of them the asker need not wait.
            if unasked == resolvers.len() || deadline <= Instant::now() {
                return None;
            }
            if unasked == 0 {
                // A resolver that answers nonsense must not be asked in a busy loop.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        None
    }

    async fn ask_by_tcp(
        &self,
        question: &Question,
        resolver: SocketAddr,
    ) -> Result<Vec<u8>, NoAnswer> {
        let id = clock::secret_u16();
        let message = question.outgoing(id, Transport::Tcp).ok_or(NoAnswer::Unasked)?;
        let dialler = if resolver.is_ipv4() { &self.tcp_v4 } else { &self.tcp_v6 };
        let bytes = dialler.ask(&message, resolver).await.map_err(|_| NoAnswer::Unasked)?;
        let same = bytes.starts_with(&id.to_be_bytes());
        question.incoming(&bytes).filter(|_| same).ok_or(NoAnswer::Unusable)
    }

    async fn ask_by_udp(
        &self,
        question: &Question,
        resolver: SocketAddr,
    ) -> Result<Vec<u8>, NoAnswer> {
        let mut waiting = Waiting::begin(&self.pending, resolver).ok_or(NoAnswer::Unasked)?;
        let message = question.outgoing(waiting.key.1, Transport::Udp).ok_or(NoAnswer::Unasked)?;
        let socket = if resolver.is_ipv4() { &self.v4 } else { &self.v6 };
        socket.send_to(&message, resolver).await.map_err(|_| NoAnswer::Unasked)?;
        let bytes = (&mut waiting.answer).await.map_err(|_| NoAnswer::Unusable)?;
        question.incoming(&bytes).ok_or(NoAnswer::Unusable)
    }
}

/// One question under way; forgotten when dropped.
struct Waiting {
    pending: Rc<Pending>,
    key: (SocketAddr, u16),
    answer: oneshot::Receiver<Vec<u8>>,
}

impl Waiting {
    fn begin(pending: &Rc<Pending>, resolver: SocketAddr) -> Option<Self> {
        let mut table = pending.borrow_mut();
        // Of 65,536 ids at most 1,024 are taken, so a free one is found at once.
        let free =
            (0..64).map(|_| (resolver, clock::secret_u16())).find(|k| !table.contains_key(k));
        let key = free?;
        let (sender, answer) = oneshot::channel();
        table.insert(key, sender);
        Some(Self { pending: Rc::clone(pending), key, answer })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.pending.borrow_mut().remove(&self.key);
    }
}

async fn receive(socket: Rc<UdpSocket>, pending: Rc<Pending>) {
    let mut buffer = vec![0; ANSWER_BYTES_MAX];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, from)) => deliver(&buffer[..length], from, &pending),
            Err(error) => {
                // A resolver that is not there shows as an error of this socket.
                tracing::debug!(%error, "a DNS resolver cannot be reached");
                tokio::task::yield_now().await;
            }
        }
    }
}

fn deliver(answer: &[u8], from: SocketAddr, pending: &Pending) {
    let [high, low, ..] = answer else { return };
    let id = u16::from_be_bytes([*high, *low]);
    if let Some(waiting) = pending.borrow_mut().remove(&(from, id)) {
        // Ignored: the asker has given up in the meantime.
        let _gone = waiting.send(answer.to_vec()).is_err();
    }
}
