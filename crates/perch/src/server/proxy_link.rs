//! Keeps a proxy running and tells it what it must know; takes its wishes to the Machines' tasks.
//!
//! ```text
//!   connect ──► session: settings, every app, end of snapshot, then changes ──► it ends ──┐
//!      ▲  refused: no proxy lives ──► spawn one with our copies of the listeners          │
//!      └──────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A proxy that outlived an earlier server is found by its control socket and goes on; one that lives
//! and does not answer ends before it gets a successor. While no
//! proxy is connected nothing is in flight that we could wait for, so drains end at once.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use perch_core::balancer::{StartOutcome, StopOutcome};
use perch_core::lifecycle::{self, StartBy, StopBy};
use perch_proxy::Handover;
use perch_proxy::control::{
    self, Cause, FromProxy, HEARTBEAT, Link, LinkError, LinkSender, Listeners, Note, Thaw, ToProxy,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::clock;
use super::freezers::{self, Handed};
use super::history::Source;
use super::ledger::entry;
use super::machine::Command as MachineCommand;
use super::platform_log::Line;
use super::seat::Post;
use super::views;
use super::world::{World, lock};
use crate::{process, service_manager};

/// Answers that wait for the proxy; they are few, because each answers a question of its own.
const ANSWERS: usize = 4_096;
/// A proxy that lives greets at once.
const GREETING_TIMEOUT: Duration = Duration::from_secs(2);
/// One that lives and does not may only be slow, as everything is on a machine that is short of time: so often it is
/// asked before it is replaced, beside once by a server that starts.
const GREETINGS_STANDING: u32 = 2;
/// So often one that was just started: it may have to be read from a busy disk first, and nobody is served meanwhile
/// by anybody else.
const GREETINGS_STARTED: u32 = 15;
/// So often one whose predecessors were all too slow.
const GREETINGS_MAX: u32 = 30;
/// How long a proxy may take to end after SIGTERM.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before another proxy is started when the last one ended at once, and before another connection to one with
/// which nothing can be said.
const RESPAWN_PAUSE: Duration = Duration::from_millis(200);

/// For whom the proxy wants a Machine up, and what it has done for that already.
#[derive(Debug, Clone)]
pub(crate) struct Waking {
    pub(crate) cause: Option<Cause>,
    pub(crate) thawed: Option<Thaw>,
}

/// What other tasks say to the proxy. Never blocks.
#[derive(Debug)]
pub(crate) struct ProxyPort {
    answers: mpsc::Sender<ToProxy>,
    changed: Mutex<BTreeSet<String>>,
    settings_changed: AtomicBool,
    wake: Notify,
    /// Whom to tell about the end of a drain: the Machine's task and the lifecycle's own token.
    drains: Mutex<BTreeMap<u64, (Post, u64)>>,
    next_token: AtomicU64,
    /// Whether a proxy may carry traffic that the server has to wait for.
    connected: watch::Sender<bool>,
    /// Whether a proxy was ever told everything.
    serving: watch::Sender<bool>,
    /// The proxy that was started or found last; it never says itself who it is.
    process: Mutex<Option<Arc<OwnedFd>>>,
    /// Counts the connections to proxies.
    sessions: AtomicU64,
}

impl ProxyPort {
    pub(crate) fn new() -> (Self, mpsc::Receiver<ToProxy>) {
        let (answers, receiver) = mpsc::channel(ANSWERS);
        let port = Self {
            answers,
            changed: Mutex::default(),
            settings_changed: AtomicBool::new(false),
            wake: Notify::new(),
            drains: Mutex::default(),
            next_token: AtomicU64::new(1),
            connected: watch::Sender::new(false),
            serving: watch::Sender::new(false),
            process: Mutex::default(),
            sessions: AtomicU64::new(0),
        };
        (port, receiver)
    }

    /// Becomes true when a proxy has been told everything.
    pub(crate) fn serving(&self) -> watch::Receiver<bool> {
        self.serving.subscribe()
    }

    /// Which connection this is; what came over an earlier one is void.
    pub(crate) fn session(&self) -> u64 {
        self.sessions.load(Ordering::Acquire)
    }

    /// The proxy gets this app's new view.
    pub(crate) fn app_changed(&self, app: String) {
        lock(&self.changed).insert(app);
        self.wake.notify_one();
    }

    /// The proxy gets the networks anew.
    pub(crate) fn networks_changed(&self) {
        self.settings_changed.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    pub(crate) fn drain(
        &self,
        machine: &str,
        run: u64,
        token: u64,
        timeout: Duration,
        mailbox: Post,
    ) {
        let own = self.next_token.fetch_add(1, Ordering::Relaxed);
        lock(&self.drains).insert(own, (mailbox, token));
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let message = ToProxy::Drain { machine: machine.to_owned(), run, token: own, timeout_ms };
        if !*self.connected.borrow() || self.answers.try_send(message).is_err() {
            self.drained(own);
        }
    }

    pub(crate) fn undrain(&self, machine: &str, run: u64) {
        self.answer(ToProxy::Undrain { machine: machine.to_owned(), run });
    }

    pub(crate) fn start_done(&self, machine: &str, attempt: u64, outcome: StartOutcome) {
        let outcome = match outcome {
            StartOutcome::Started { run } => control::StartOutcome::Started { run },
            StartOutcome::Failed { reason } => control::StartOutcome::Failed { reason },
            StartOutcome::Refused { reason } => control::StartOutcome::Refused { reason },
        };
        self.answer(ToProxy::StartDone { machine: machine.to_owned(), attempt, outcome });
    }

    pub(crate) fn stop_done(&self, machine: &str, attempt: u64, outcome: StopOutcome) {
        let outcome = match outcome {
            StopOutcome::Stopped => control::StopOutcome::Stopped,
            StopOutcome::Suspended => control::StopOutcome::Suspended,
            StopOutcome::Refused { reason } => control::StopOutcome::Refused { reason },
        };
        self.answer(ToProxy::StopDone { machine: machine.to_owned(), attempt, outcome });
    }

    /// An answer to a proxy that is gone is dropped: its successor asks anew.
    fn answer(&self, message: ToProxy) {
        if *self.connected.borrow() && self.answers.try_send(message).is_err() {
            tracing::warn!("the proxy does not take its answers; one was dropped");
        }
    }

    fn drained(&self, own: u64) {
        let Some((mailbox, token)) = lock(&self.drains).remove(&own) else { return };
        // A full mailbox is no loss: the lifecycle's own deadline ends the drain.
        mailbox.try_send(MachineCommand::Drained { token }).ok();
    }

    fn all_drained(&self) {
        let all: Vec<u64> = lock(&self.drains).keys().copied().collect();
        for own in all {
            self.drained(own);
        }
    }
}

/// A proxy that outlived an earlier server, if there is one. From now on drains are asked of it, because it
/// carries what is in flight; it hears them when its session begins.
pub(crate) async fn find(world: &Arc<World>) -> Option<Standing> {
    let standing = connect(world).await.ok();
    if standing.is_some() {
        *lock(&world.proxy.process) = process::recall(&world.paths.proxy_record()).map(Arc::new);
        world.proxy.connected.send_replace(true);
    }
    standing
}

/// A connection whose session has not begun.
pub(crate) type Standing = (Link, Listeners);

/// Keeps a proxy connected until the server ends; begins with the one that was found, if any. Else the
/// first proxy gets the listeners that outlived an earlier server and its proxy, if they did.
pub(crate) async fn keep(
    world: Arc<World>,
    mut answers: mpsc::Receiver<ToProxy>,
    mut found: Option<Standing>,
    mut listeners: Option<Listeners>,
) {
    let (mut unanswered, mut patience) = (0, Patience::default());
    while !world.shutdown.is_cancelled() {
        let connected = match found.take() {
            Some(standing) => Ok(standing),
            None => {
                // What was meant for a proxy that is gone would confuse its successor.
                while answers.try_recv().is_ok() {}
                connect(&world).await
            }
        };
        match connected {
            Ok((link, theirs)) => {
                unanswered = 0;
                patience.greeted();
                entrust(&theirs);
                listeners = Some(theirs);
                let began = Instant::now();
                let ended = session(&world, link, &mut answers).await;
                world.proxy.connected.send_replace(false);
                world.proxy.all_drained();
                if let Err(error) = ended {
                    tracing::warn!(
                        error = super::images::chain(&error),
                        "the proxy's connection ended"
                    );
                    tokio::time::sleep(pause_after(&error, began.elapsed())).await;
                }
            }
            Err(error) => {
                tracing::debug!(error = super::images::chain(&error), "no proxy yet");
                unanswered += 1;
                let former = living(&world);
                if former.is_some()
                    && matches!(error, LinkError::Closed)
                    && unanswered < patience.greetings()
                {
                    continue;
                }
                if let Some(former) = former {
                    end_former(former, &error).await;
                    patience.replaced();
                }
                unanswered = 0;
                respawn(&world, &mut listeners).await;
                patience.started();
            }
        }
    }
}

/// How long a proxy that lives may say nothing. A successor has no more time than its predecessor had and all its work
/// still to do: without more patience each of them would end before it could serve.
#[derive(Debug, Clone, Copy, Default)]
struct Patience {
    /// Whether it was started by this server.
    is_ours: bool,
    /// How many of ours in a row were replaced before they greeted.
    replaced: u32,
}

impl Patience {
    /// How often it is asked.
    fn greetings(self) -> u32 {
        if !self.is_ours {
            return GREETINGS_STANDING;
        }
        let doubled = 1_u32.checked_shl(self.replaced).unwrap_or(GREETINGS_MAX);
        GREETINGS_STARTED.saturating_mul(doubled).min(GREETINGS_MAX)
    }

    fn greeted(&mut self) {
        self.replaced = 0;
    }

    fn replaced(&mut self) {
        self.replaced = self.replaced.saturating_add(u32::from(self.is_ours));
    }

    fn started(&mut self) {
        self.is_ours = true;
    }
}

/// How long to wait after a session that failed. A proxy that lived for a while and is gone is replaced at once, since
/// callers wait; one that is still there would end the next session as it ended this one.
fn pause_after(error: &LinkError, lived: Duration) -> Duration {
    match error {
        LinkError::Closed | LinkError::Io { .. } => RESPAWN_PAUSE.saturating_sub(lived),
        LinkError::TooLong
        | LinkError::Message(_)
        | LinkError::Version { .. }
        | LinkError::Sockets(_) => RESPAWN_PAUSE,
    }
}

/// Lets the service manager keep the listeners too. Without it they are kept by us and the proxy alone.
fn entrust(listeners: &Listeners) {
    if let Err(error) = service_manager::keep(listeners) {
        tracing::warn!(%error, "the service manager does not keep the listeners");
    }
}

async fn connect(world: &World) -> Result<Standing, LinkError> {
    let socket = world.paths.proxy_socket();
    let connecting = Link::connect(&socket);
    match tokio::time::timeout(GREETING_TIMEOUT, connecting).await {
        Ok(connected) => connected,
        Err(_elapsed) => Err(LinkError::Closed),
    }
}

/// The proxy that was started or written down last, if it lives.
fn living(world: &World) -> Option<Arc<OwnedFd>> {
    let recalled = || process::recall(&world.paths.proxy_record()).map(Arc::new);
    process(world).or_else(recalled).filter(|it| !process::ends_within(it, Duration::ZERO))
}

/// Ends a proxy that lives and says nothing, or nothing that we understand. Beside its successor it would take half
/// of the callers, and thaw Machines unknown to us.
async fn end_former(former: Arc<OwnedFd>, error: &LinkError) {
    tracing::warn!(error = super::images::chain(error), "a proxy that does not answer is replaced");
    let is_silent = matches!(error, LinkError::Closed);
    let ended = tokio::task::spawn_blocking(move || match is_silent {
        true => kill(&former),
        false => end(&former),
    });
    if let Err(error) = ended.await {
        tracing::error!(%error, "could not end the proxy");
    }
}

async fn respawn(world: &Arc<World>, listeners: &mut Option<Listeners>) {
    let (owner, own) = (world.clone(), listeners.take());
    let spawned = tokio::task::spawn_blocking(move || spawn_proxy(&owner, own)).await;
    match spawned {
        Ok(Ok(kept)) => *listeners = Some(kept),
        Ok(Err(error)) => {
            tracing::error!(error = format!("{error:#}"), "could not start a proxy");
            tokio::time::sleep(RESPAWN_PAUSE).await;
        }
        Err(error) => tracing::error!(%error, "could not start a proxy"),
    }
}

/// Starts a proxy process inside the plane and hands its sockets over; answers our copies of them.
fn spawn_proxy(world: &World, own: Option<Listeners>) -> anyhow::Result<Listeners> {
    let listeners = match own {
        Some(listeners) => listeners,
        None => {
            service_manager::forget().context("could not tell the service manager")?;
            make_listeners(world)?
        }
    };
    let path = world.paths.proxy_socket();
    if path.exists() {
        std::fs::remove_file(&path)
            .with_context(|| format!("could not replace {}", path.display()))?;
    }
    let control =
        UnixListener::bind(&path).with_context(|| format!("could not bind {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("could not set the mode of {}", path.display()))?;
    let handover = Handover { listeners: listeners.try_clone()?, control };
    let (ours, theirs) = UnixStream::pair().context("could not make a socket pair")?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("proxy").stdin(Stdio::from(OwnedFd::from(theirs)));
    command.stdout(Stdio::null()).stderr(proxy_log(world)?);
    service_manager::hide_from(&mut command);
    let spawned = world.plane.enter(|| command.spawn()).context("could not enter the plane")?;
    let mut child = spawned.context("could not start the proxy")?;
    drop(command);
    register(world, Pid::from_child(&child))?;
    handover.send(&ours).context("could not hand the sockets over")?;
    // Reaps it; its end is noticed by its connection.
    std::thread::spawn(move || child.wait());
    Ok(listeners)
}

/// Remembers the proxy, also for the next server and for `perch down`, before it can do anything: without its sockets
/// it only waits.
fn register(world: &World, pid: Pid) -> anyhow::Result<()> {
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty());
    *lock(&world.proxy.process) = Some(Arc::new(pidfd.context("could not watch the proxy")?));
    let path = world.paths.proxy_record();
    process::remember(pid, &path).with_context(|| format!("could not write {}", path.display()))
}

/// The proxy's own words outlive the server's standard error.
fn proxy_log(world: &World) -> anyhow::Result<std::fs::File> {
    let path = world.paths.data.join("proxy.log");
    let opened = std::fs::File::options().create(true).append(true).open(&path);
    opened.with_context(|| format!("could not open {}", path.display()))
}

fn make_listeners(world: &World) -> anyhow::Result<Listeners> {
    let made = world.plane.listeners().context("could not make the listeners")?;
    let udp = |address: &str| std::net::UdpSocket::bind(address).map(OwnedFd::from);
    let forward_v4 = udp("0.0.0.0:0").context("could not make a socket for DNS")?;
    let forward_v6 = udp("[::]:0").context("could not make a socket for DNS")?;
    let tcp = |family| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let made = rustix::net::socket_with(family, SocketType::STREAM, flags, None);
        made.context("could not make a socket for DNS over TCP")
    };
    Ok(Listeners {
        tcp6: made.tcp6,
        tcp4: made.tcp4,
        udp6: made.udp6,
        dns_udp: made.dns_udp,
        dns_tcp: made.dns_tcp,
        forward_v4,
        forward_v6,
        forward_tcp_v4: tcp(AddressFamily::INET)?,
        forward_tcp_v6: tcp(AddressFamily::INET6)?,
    })
}

async fn session(
    world: &Arc<World>,
    link: Link,
    answers: &mut mpsc::Receiver<ToProxy>,
) -> Result<(), LinkError> {
    world.proxy.sessions.fetch_add(1, Ordering::AcqRel);
    freezers::look_for_thawed(world).await;
    let mut handed = link.thaws().then(Handed::default);
    let (mut sender, mut receiver) = link.into_split();
    let apps = send_snapshot(world, &mut sender).await?;
    hand_over(world, &mut sender, &mut handed, apps).await?;
    world.proxy.connected.send_replace(true);
    world.proxy.serving.send_replace(true);
    loop {
        tokio::select! {
            message = receiver.recv() => hear(world, message?),
            answer = answers.recv() => {
                let Some(answer) = answer else { return Ok(()) };
                // The view first: an answer may be about a state that only the view tells.
                let apps = send_changes(world, &mut sender).await?;
                sender.send(&answer).await?;
                hand_over(world, &mut sender, &mut handed, apps).await?;
            }
            () = world.proxy.wake.notified() => {
                let apps = send_changes(world, &mut sender).await?;
                hand_over(world, &mut sender, &mut handed, apps).await?;
            }
            () = world.shutdown.cancelled() => return Ok(()),
        }
    }
}

/// After the answers: nobody waits for this.
async fn hand_over(
    world: &World,
    sender: &mut LinkSender,
    handed: &mut Option<Handed>,
    apps: impl IntoIterator<Item = String>,
) -> Result<(), LinkError> {
    let Some(handed) = handed else { return Ok(()) };
    for app in apps {
        handed.complete(world, sender, &app).await?;
    }
    Ok(())
}

/// The runs that a proxy has thawed and told nobody of, by Machine.
pub(crate) fn thawed((link, _): &Standing) -> BTreeMap<String, u64> {
    link.thawed().iter().map(|thawed| (thawed.machine.clone(), thawed.run)).collect()
}

async fn send_snapshot(
    world: &Arc<World>,
    sender: &mut LinkSender,
) -> Result<Vec<String>, LinkError> {
    sender.send(&ToProxy::Settings(views::settings(world))).await?;
    let apps: Vec<String> = world.keeper.read().apps.keys().cloned().collect();
    for app in &apps {
        send_app(world, sender, app).await?;
    }
    sender.send(&ToProxy::SnapshotEnd).await?;
    Ok(apps)
}

async fn send_changes(
    world: &Arc<World>,
    sender: &mut LinkSender,
) -> Result<BTreeSet<String>, LinkError> {
    if world.proxy.settings_changed.swap(false, Ordering::AcqRel) {
        sender.send(&ToProxy::Settings(views::settings(world))).await?;
    }
    let changed = std::mem::take(&mut *lock(&world.proxy.changed));
    for app in &changed {
        send_app(world, sender, app).await?;
    }
    Ok(changed)
}

async fn send_app(world: &Arc<World>, sender: &mut LinkSender, app: &str) -> Result<(), LinkError> {
    match views::app(world, app) {
        Some(view) => sender.send_app(view).await,
        None => sender.send(&ToProxy::RemoveApp { app: app.to_owned() }).await,
    }
}

fn hear(world: &Arc<World>, message: FromProxy) {
    match message {
        FromProxy::Hello { .. } => {}
        FromProxy::Start { machine, attempt, cause, thawed } => {
            let event = lifecycle::Event::Start(StartBy::Proxy { attempt });
            let text = views::wake_text(cause.as_ref(), thawed);
            let waking = Some(Box::new(Waking { cause, thawed }));
            if !tell(world, &machine, event, text, waking) {
                let reason = "the Machine is gone".to_owned();
                world.proxy.start_done(&machine, attempt, StartOutcome::Refused { reason });
            }
        }
        FromProxy::Stop { machine, run, attempt, reason } => {
            let event = lifecycle::Event::Stop(StopBy::Proxy { run, attempt });
            if !tell(world, &machine, event, reason, None) {
                world.proxy.stop_done(&machine, attempt, StopOutcome::Stopped);
            }
        }
        FromProxy::Drained { token, .. } => world.proxy.drained(token),
        FromProxy::Note(note) => enter(world, *note),
        FromProxy::Checks { machine, run, results } => {
            // What was under way when it was removed is nobody's.
            if world.handle(&machine).is_some() {
                world.health.note(&machine, run, results);
            }
        }
        FromProxy::Log { app, machine, level, text, event } => {
            if event.as_deref() == Some(HEARTBEAT)
                && let Some(handle) = machine.as_deref().and_then(|machine| world.handle(machine))
            {
                let (source, cause, reply) = (Source::Proxy, text.clone(), oneshot::channel().0);
                // Of one that cannot hear it now it is said again in an hour.
                handle.tell(MachineCommand::Note { kind: HEARTBEAT, source, cause, reply });
            }
            let timestamp = clock::stamp_micros(clock::unix().as_micros() as u64);
            let machine = machine.unwrap_or_default();
            world
                .platform_log
                .push(&app, Line { timestamp, machine, provider: "proxy", level, text });
        }
    }
}

fn tell(
    world: &Arc<World>,
    machine: &str,
    event: lifecycle::Event,
    cause: String,
    waking: Option<Box<Waking>>,
) -> bool {
    let session = world.proxy.session();
    let command = MachineCommand::FromProxy { event, cause, waking, session };
    world.handle(machine).is_some_and(|it| it.tell(command))
}

/// Into the ledger, as it was when the proxy saw it.
fn enter(world: &World, note: Note) {
    let status = note.machine.as_deref().and_then(|id| world.handle(id)).map(|it| it.status());
    let history = status.map_or_else(Vec::new, |status| status.history.newest_first());
    let unix_micros = note.unix_micros;
    world.ledger.enter(entry::of_note(note, &history), Some(unix_micros));
}

/// The proxy that is or was connected.
pub(crate) fn process(world: &World) -> Option<Arc<OwnedFd>> {
    lock(&world.proxy.process).clone()
}

/// Asks a proxy to end and waits until it has, at most as long as it may drain. Blocks.
pub(crate) fn end(pidfd: &OwnedFd) {
    if let Err(error) = process::signal(pidfd, Signal::TERM) {
        tracing::warn!(%error, "could not end the proxy");
        return;
    }
    if !process::ends_within(pidfd, END_TIMEOUT) {
        tracing::warn!("the proxy takes too long to end; it is killed");
        kill(pidfd);
    }
}

fn kill(pidfd: &OwnedFd) {
    if let Err(error) = process::signal(pidfd, Signal::KILL) {
        tracing::warn!(%error, "could not kill the proxy");
    } else if !process::ends_within(pidfd, END_TIMEOUT) {
        tracing::warn!("the proxy hangs in the kernel");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
