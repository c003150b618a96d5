//! The link to proxies, with ends of it that are no proxies.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::process::Child;

use perch_proxy::control::VERSION;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::server::proxy_port::ProxyPort;
use crate::server::seat::Post;

/// What takes so long never ends.
const LONG: Duration = Duration::from_secs(120);

#[test]
fn sessions_that_end_at_once_are_not_begun_without_a_pause() {
    let long = Duration::from_secs(60);
    assert_eq!(pause_after(&LinkError::Closed, Duration::ZERO), RESPAWN_PAUSE);
    assert_eq!(pause_after(&LinkError::Closed, long), Duration::ZERO);
    assert_eq!(pause_after(&LinkError::TooLong, long), RESPAWN_PAUSE);
}

#[test]
fn each_silent_proxy_leaves_its_successor_more_time_until_one_greets() {
    let mut patience = Patience::default();
    let mut waits = Vec::new();
    for _ in 0..40 {
        waits.push((GREETING_TIMEOUT * patience.greetings()).as_secs());
        patience.replaced();
        patience.started();
    }
    assert_eq!(waits[..4], [4, 30, 60, 60], "the first stood already");
    assert_eq!(waits[39], 60, "it ends somewhere");
    patience.greeted();
    assert_eq!(GREETING_TIMEOUT * patience.greetings(), Duration::from_secs(30));
}

#[tokio::test]
async fn a_proxy_that_reads_nothing_hears_what_is_waited_for_over_another_connection() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (port, mut answers) = ProxyPort::with_room_for(4);
    let world = World::of_test(dir.path(), port);
    let proxy = FakeProxy::of(&world);
    let drain = |machine: &str| {
        let (mailbox, drained) = Post::of_test();
        world.proxy.drain(machine, 3, 77, Duration::from_secs(5), mailbox);
        drained
    };
    let (link, mut deaf) = tokio::join!(link_to(&world), proxy.greet());
    let mut before = None;
    tokio::select! {
        over = session(&world, link, &mut answers, Role::Current) => {
            assert!(matches!(over, Ok(Over::Overran)), "{over:?}");
        }
        () = async {
            serves(&world).await;
            before = Some(drain("before"));
            refuse_stops(&world, 1000).await;
        } => panic!("nobody ends it"),
    }
    let mut meanwhile = drain("meanwhile");
    world.proxy.current_parted();
    deaf.read_to_end(&mut Vec::new()).await.expect("it was ended");
    let mut before = before.expect("it was begun");
    assert!(before.try_recv().is_err() && meanwhile.try_recv().is_err(), "somebody may be inside");

    let (link, mut hearing) = tokio::join!(link_to(&world), proxy.greet());
    let hears = async {
        let told = told_at_first(&mut hearing).await;
        let [ToProxy::Settings(_), ToProxy::Drain { machine, .. }, ToProxy::Drain { .. }] =
            &told[..]
        else {
            panic!("{told:?}")
        };
        assert_eq!(machine, "before");
        world.shutdown.cancel();
    };
    let (over, ()) = tokio::join!(session(&world, link, &mut answers, Role::Current), hears);
    assert!(matches!(over, Ok(Over::Ended)), "{over:?}");
}

#[tokio::test]
async fn a_server_that_ends_waits_for_no_proxy_that_reads_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (port, mut answers) = ProxyPort::new();
    let world = World::of_test(dir.path(), port);
    let proxy = FakeProxy::of(&world);
    let (link, _deaf) = tokio::join!(link_to(&world), proxy.greet());
    let ends = async {
        serves(&world).await;
        refuse_stops(&world, 100).await;
        world.shutdown.cancel();
    };
    let both = async { tokio::join!(session(&world, link, &mut answers, Role::Current), ends) };
    let (over, ()) = tokio::time::timeout(LONG, both).await.expect("it hangs");
    assert!(matches!(over, Ok(Over::Ended)), "{over:?}");
}

/// Listens where the server looks for its proxy, as a process that only sleeps.
struct FakeProxy {
    listener: UnixListener,
    process: Child,
}

impl FakeProxy {
    fn of(world: &World) -> Self {
        let listener = UnixListener::bind(world.paths.proxy_socket()).expect("it can be bound");
        let process = Command::new("sleep").arg("600").spawn().expect("sleep is there");
        let pid = Pid::from_child(&process);
        process::remember(pid, &world.paths.proxy_record()).expect("it is written");
        Self { listener, process }
    }

    /// Takes a connection and says what a proxy says first.
    async fn greet(&self) -> UnixStream {
        let (stream, _) = self.listener.accept().await.expect("somebody connects");
        let hello = FromProxy::Hello {
            version: VERSION,
            pid: self.process.id(),
            thaws: false,
            thawed: Vec::new(),
            retires: true,
            listeners: Listeners::NAMES.map(str::to_owned).to_vec(),
        };
        let line = serde_json::to_string(&hello).expect("JSON") + "\n";
        let sockets = Listeners::NAMES.map(|_| stream.as_fd());
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(9))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&sockets)), "there is room");
        let parts = [IoSlice::new(line.as_bytes())];
        sendmsg(&stream, &parts, &mut ancillary, SendFlags::empty()).expect("it greets");
        stream
    }
}

impl Drop for FakeProxy {
    fn drop(&mut self) {
        self.process.kill().and_then(|()| self.process.wait()).expect("it is ours");
    }
}

async fn link_to(world: &World) -> Link {
    Link::connect(&world.paths.proxy_socket()).await.expect("it greets").0
}

/// Waits until a proxy was told everything.
async fn serves(world: &World) {
    world.proxy.serving().wait_for(Option::is_some).await.expect("the port lives");
}

/// Some are more than the kernel keeps for who does not read.
async fn refuse_stops(world: &World, count: u64) {
    for attempt in 0..count {
        let reason = "long ".repeat(10_000);
        world.proxy.stop_done("m", attempt, StopOutcome::Refused { reason });
        tokio::task::yield_now().await;
    }
}

/// What comes before the end of the snapshot.
async fn told_at_first(stream: &mut UnixStream) -> Vec<ToProxy> {
    let (mut lines, mut told) = (BufReader::new(stream).lines(), Vec::new());
    while let Some(line) = lines.next_line().await.expect("it can be read") {
        match serde_json::from_str(&line).expect("a message") {
            ToProxy::SnapshotEnd => break,
            message => told.push(message),
        }
    }
    told
}
