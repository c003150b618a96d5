//! The link to proxies, with ends of it that are no proxies.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::process::Child;

use perch_proxy::control::VERSION;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::server::handoff::{Asker, Note};
use crate::server::keeper::Change;
use crate::server::proxy_port::ProxyPort;
use crate::server::records::NetworkRecord;
use crate::server::seat::Post;
use crate::server::{Ending, Signals, end as end_server, renew_proxy, replace_proxy};

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
    patience.started();
    assert_eq!(GREETING_TIMEOUT * patience.greetings(), Duration::from_secs(30));
}

#[tokio::test]
async fn a_proxy_that_stalls_after_it_has_greeted_goes_on_with_whom_it_serves() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (port, answers) = ProxyPort::with_room_for(4);
    let world = World::of_test(dir.path(), port);
    let mut proxy = FakeProxy::of(&world);
    let keeper = tokio::spawn(keep(world.clone(), answers, None, None));
    let mut stalled = proxy.greet().await;
    serves(&world).await;
    refuse_stops(&world, 1000).await;
    ends(&mut stalled).await;
    // One that was never heard would be ended now.
    let mut unheard = Vec::new();
    for _ in 0..GREETINGS_STANDING {
        unheard.push(proxy.accept().await);
    }
    let mut again = proxy.greet().await;
    told_until(&mut again, |it| matches!(it, ToProxy::SnapshotEnd)).await;
    assert!(proxy.process.try_wait().expect("it is ours").is_none(), "it was ended");
    world.shutdown.cancel();
    keeper.await.expect("it ends");
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
        over = session(&world, link, &mut answers, Role::Current(Origin::Own)) => {
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
    ends(&mut deaf).await;
    let mut before = before.expect("it was begun");
    assert!(before.try_recv().is_err() && meanwhile.try_recv().is_err(), "somebody may be inside");

    let (link, mut hearing) = tokio::join!(link_to(&world), proxy.greet());
    let hears = async {
        let told = told_until(&mut hearing, |it| matches!(it, ToProxy::SnapshotEnd)).await;
        let [ToProxy::Settings(_), ToProxy::Drain { machine, .. }, ToProxy::Drain { .. }, _] =
            &told[..]
        else {
            panic!("{told:?}")
        };
        assert_eq!(machine, "before");
        world.shutdown.cancel();
    };
    let (over, ()) =
        tokio::join!(session(&world, link, &mut answers, Role::Current(Origin::Own)), hears);
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
    let both = async {
        tokio::join!(session(&world, link, &mut answers, Role::Current(Origin::Own)), ends)
    };
    let (over, ()) = tokio::time::timeout(LONG, both).await.expect("it hangs");
    assert!(matches!(over, Ok(Over::Ended)), "{over:?}");
}

#[tokio::test]
async fn a_former_proxy_that_greets_late_is_retired_and_who_asked_hears_what_became_of_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (port, answers) = ProxyPort::new();
    let world = World::of_test(dir.path(), port);
    let proxy = FakeProxy::of(&world);
    let pid = proxy.process.id();
    assert!(find(&world).await.is_none(), "it has not greeted");
    let keeper = tokio::spawn(keep(world.clone(), answers, None, None));
    let mut early = proxy.greet().await;
    serves(&world).await;
    let asked = Upgrade::begin(&world);
    ends(&mut early).await;
    assert!(world.paths.retired_socket(pid).exists());

    let mut retired = proxy.greet().await;
    // No process can be started in this world.
    world.proxy.set_serving(Serving { pid: 1, origin: Origin::Own });
    let told = told_until(&mut retired, |it| matches!(it, ToProxy::Retire { .. })).await;
    assert!(told.iter().any(|it| matches!(it, ToProxy::SnapshotEnd)), "{told:?}");
    let left = serde_json::to_string(&FromProxy::Retired { left: 3 }).expect("JSON") + "\n";
    retired.write_all(left.as_bytes()).await.expect("it is heard");
    let wanted = format!("; proxy {pid} by 1, 3 connections end in the former one");
    asked.hears(&wanted).await;
    world.shutdown.cancel();
    assert!(keeper.await.expect("it ends").is_some(), "the listeners are lost");
}

#[tokio::test]
async fn a_proxy_of_this_server_stays_and_who_asked_hears_what_became_of_the_former() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let world = World::of_test(dir.path(), ProxyPort::new().0);
    world.proxy.set_serving(Serving { pid: 7, origin: Origin::Own });
    Upgrade::begin(&world).hears("; its proxy was started anew").await;
    world.proxy.set_serving(Serving { pid: 7, origin: Origin::Former });
    let asked = Upgrade::begin(&world);
    tokio::task::yield_now().await;
    assert!(world.proxy.call_off_replacement(7), "it is not to be replaced");
    world.proxy.replace(7);
    world.proxy.set_serving(Serving { pid: 8, origin: Origin::Own });
    asked.hears("; its proxy 7 ended before it could be replaced, and 8 was started").await;
    assert!(!world.proxy.call_off_replacement(7) && !world.proxy.call_off_replacement(8));
}

#[tokio::test]
async fn a_proxy_whose_former_server_has_only_begun_to_retire_it_is_not_taken_for_a_retired_one() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let world = World::of_test(dir.path(), ProxyPort::new().0);
    let proxy = FakeProxy::of(&world);
    let (paths, pid) = (&world.paths, proxy.process.id());
    std::fs::rename(paths.proxy_record(), paths.retired_record(pid)).expect("it is there");
    retired::take_back(&world);
    assert!(process::recall(&paths.proxy_record()).is_some() && living(&world).is_some());
    assert!(retired::find(&world).await.is_empty());
    // This one has done both steps.
    std::fs::rename(paths.proxy_record(), paths.retired_record(pid)).expect("it is there");
    std::fs::rename(paths.proxy_socket(), paths.retired_socket(pid)).expect("it is there");
    retired::take_back(&world);
    assert!(living(&world).is_none());
}

#[tokio::test]
async fn a_proxy_that_greets_late_is_known_and_ends_with_the_server() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (port, answers) = ProxyPort::new();
    let world = World::of_test(dir.path(), port);
    let mut proxy = FakeProxy::of(&world);
    assert!(find(&world).await.is_none(), "it has not greeted");
    let keeper = tokio::spawn(keep(world.clone(), answers, None, None));
    let _late = proxy.greet().await;
    serves(&world).await;
    assert!(world.proxy.process().is_some(), "nobody knows it");
    let nobody = tokio::spawn(std::future::ready(()));
    end_server(&world, keeper, nobody, &Ending::Everything).await.expect("it ends");
    assert!(proxy.process.try_wait().expect("it is ours").is_some(), "it lives on");
}

#[tokio::test]
async fn a_server_that_ends_takes_with_it_who_was_started_while_it_ended() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let world = World::of_test(dir.path(), ProxyPort::new().0);
    let mut proxy = FakeProxy::of(&world);
    let keeper = tokio::spawn({
        let (world, pid) = (world.clone(), Pid::from_child(&proxy.process));
        async move {
            world.shutdown.cancelled().await;
            register(&world, pid).expect("it lives");
            None
        }
    });
    let nobody = tokio::spawn(std::future::ready(()));
    std::fs::remove_file(world.paths.proxy_record()).expect("it is there");
    end_server(&world, keeper, nobody, &Ending::Everything).await.expect("it ends");
    assert!(proxy.process.try_wait().expect("it is ours").is_some(), "it lives on");
}

#[tokio::test]
async fn a_server_whose_proxy_does_not_come_up_hears_that_it_is_to_end() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let world = World::of_test(dir.path(), ProxyPort::new().0);
    let mut signals = Signals::new().expect("signals can be watched");
    // From here on it ends nobody.
    rustix::process::kill_process(rustix::process::getpid(), Signal::USR1).expect("it is ours");
    let heard = tokio::time::timeout(LONG, signals.before_a_proxy_serves(&world));
    let heard = heard.await.expect("it hangs").expect("the port lives");
    assert!(matches!(heard, Some(Ending::ServerAlone)), "{heard:?}");
}

#[tokio::test]
async fn a_proxy_that_takes_all_views_slowly_hears_then_what_found_no_room_meanwhile() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (port, mut answers) = ProxyPort::with_room_for(4);
    let world = World::of_test(dir.path(), port);
    have_much_to_tell(&world);
    let proxy = FakeProxy::of(&world);
    let (link, mut slow) = tokio::join!(link_to(&world), proxy.greet());
    let takes = async {
        refuse_stops(&world, 100).await;
        let (mailbox, _drained) = Post::of_test();
        world.proxy.drain("meanwhile", 3, 77, Duration::from_secs(5), mailbox);
        let told = told_until(&mut slow, |it| matches!(it, ToProxy::SnapshotEnd)).await;
        let [ToProxy::Settings(_), ToProxy::Drain { machine, .. }, _] = &told[..] else {
            panic!("{} messages", told.len())
        };
        assert_eq!(machine, "meanwhile");
        serves(&world).await;
        world.shutdown.cancel();
    };
    let role = Role::Current(Origin::Own);
    let (over, ()) = tokio::join!(session(&world, link, &mut answers, role), takes);
    assert!(matches!(over, Ok(Over::Ended)), "{over:?}");
}

#[tokio::test]
async fn a_proxy_that_takes_nothing_when_a_connection_begins_is_given_up() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let world = World::of_test(dir.path(), ProxyPort::new().0);
    have_much_to_tell(&world);
    let proxy = FakeProxy::of(&world);
    let (link, _deaf) = tokio::join!(link_to(&world), proxy.greet());
    let mut open = Open::new(link);
    let told = send_views(&world, &mut open.sender, Duration::from_millis(10));
    let told = tokio::time::timeout(LONG, told).await.expect("it hangs");
    assert!(matches!(told, Err(LinkError::Io { .. })), "{told:?}");
}

#[tokio::test]
async fn who_asked_for_another_proxy_hears_that_the_former_goes_on() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let world = World::of_test(dir.path(), ProxyPort::new().0);
    world.proxy.set_serving(Serving { pid: 7, origin: Origin::Former });
    let said = replace_proxy(&world, 7, Duration::ZERO).await;
    assert!(said.starts_with("its proxy 7 could not be replaced and goes on"), "{said}");
    assert!(!world.proxy.call_off_replacement(7), "it is replaced all the same");
    std::fs::write(world.paths.retired_socket(7), "").expect("it can be written");
    let said = replace_proxy(&world, 7, Duration::ZERO).await;
    assert!(said.starts_with("its proxy 7 was retired, and no other one serves yet"), "{said}");
}

#[tokio::test]
async fn a_proxy_whose_successor_would_have_no_listeners_is_not_retired() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let world = World::of_test(dir.path(), ProxyPort::new().0);
    let proxy = FakeProxy::of(&world);
    assert!(retired::retire(&world, proxy.process.id(), None).is_none());
    assert!(living(&world).is_some() && world.paths.proxy_socket().exists(), "it was renamed");
}

/// An upgrade, as who asked for it hears of it.
struct Upgrade {
    heard: UnixStream,
}

impl Upgrade {
    /// From the moment on in which a proxy serves.
    fn begin(world: &Arc<World>) -> Self {
        let (heard, asker) = UnixStream::pair().expect("a pair");
        let asker = asker.into_std().expect("it is open");
        let former = Some((Note::own(None), Asker(Some(asker))));
        tokio::spawn(renew_proxy(world.clone(), former));
        Self { heard }
    }

    /// It has ended well, and so.
    async fn hears(mut self, end: &str) {
        let mut said = String::new();
        let read = tokio::time::timeout(LONG, self.heard.read_to_string(&mut said));
        read.await.expect("it hangs").expect("it is said");
        assert!(said.starts_with("done ") && said.trim_end().ends_with(end), "{said}");
    }
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

    async fn accept(&self) -> UnixStream {
        let accepted = tokio::time::timeout(LONG, self.listener.accept());
        accepted.await.expect("nobody asks it").expect("somebody connects").0
    }

    /// Says what a proxy says first to the next who still waits for it.
    async fn greet(&self) -> UnixStream {
        loop {
            let stream = self.accept().await;
            if self.greet_at(&stream).is_ok() {
                return stream;
            }
        }
    }

    fn greet_at(&self, stream: &UnixStream) -> rustix::io::Result<usize> {
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
        sendmsg(stream, &parts, &mut ancillary, SendFlags::NOSIGNAL)
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

/// More than the kernel keeps for who does not read.
fn have_much_to_tell(world: &World) {
    let org = world.config.default_org();
    let network =
        |id| NetworkRecord { id, org: org.to_owned(), name: format!("{id}-{}", "n".repeat(1000)) };
    let all = (1..=500).map(|id| Change::PutNetwork(network(id))).collect();
    world.keeper.write_blocking(|_| Ok((all, ()))).expect("they are stored");
}

/// Waits until a proxy was told everything.
async fn serves(world: &World) {
    let mut serving = world.proxy.serving();
    let serves = tokio::time::timeout(LONG, serving.wait_for(Option::is_some));
    serves.await.expect("it hangs").expect("the port lives");
}

/// Some are more than the kernel keeps for who does not read.
async fn refuse_stops(world: &World, count: u64) {
    for attempt in 0..count {
        let reason = "long ".repeat(10_000);
        world.proxy.stop_done("m", attempt, StopOutcome::Refused { reason });
        tokio::task::yield_now().await;
    }
}

/// The server ends this connection.
async fn ends(stream: &mut UnixStream) {
    let mut unread = Vec::new();
    let read = tokio::time::timeout(LONG, stream.read_to_end(&mut unread));
    read.await.expect("it goes on").expect("it can be read");
}

/// All messages to the first that is meant, with it.
async fn told_until(stream: &mut UnixStream, is_meant: fn(&ToProxy) -> bool) -> Vec<ToProxy> {
    let (mut lines, mut told) = (BufReader::new(stream).lines(), Vec::new());
    let mut next = async || {
        let line = tokio::time::timeout(LONG, lines.next_line());
        line.await.expect("nothing more is told").expect("it can be read")
    };
    while let Some(line) = next().await {
        told.push(serde_json::from_str(&line).expect("a message"));
        if told.last().is_some_and(is_meant) {
            return told;
        }
    }
    panic!("the connection has ended after {told:?}")
}
