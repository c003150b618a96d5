//! Keeps a proxy running and tells it what it must know; takes its wishes to the Machines' tasks.
//!
//! ```text
//!   connect ──► session: settings, every app, end of snapshot, then changes ──► it ends ──┐
//!      ▲  refused: no proxy lives ──► spawn one with our copies of the listeners          │
//!      └──────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A proxy that is to be replaced is *retired* ([`super::proxy_port`]): its socket and record get other names, its
//! successor takes the listeners, and it is told so when that serves. It goes on until everybody whom it has is served.
//!
//! A proxy that outlived an earlier server is found by its control socket and goes on; one that lives
//! and does not answer ends before it gets a successor. While no proxy lives nothing is in flight that we could wait for, so
//! drains end at once; one whose connection breaks hears at its next what is waited for. So does one that takes nothing
//! any more: when too much waits for it ([`Wire`]), its connection is ended.

pub(crate) mod retired;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use perch_core::balancer::{StartOutcome, StopOutcome};
use perch_core::lifecycle::{self, StartBy, StopBy};
use perch_net::Listening;
use perch_proxy::Handover;
use perch_proxy::control::{
    Cause, FromProxy, HEARTBEAT, HELD_TEXT, Link, LinkError, LinkReceiver, LinkSender, Listeners,
    NamedListeners, Note, Thaw, ToProxy,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio::time::error::Elapsed;

use super::clock;
use super::freezers::{self, Handed};
use super::history::Source;
use super::ledger::entry;
use super::machine::Command as MachineCommand;
use super::platform_log::Line;
use super::proxy_port::{ANSWER_TIMEOUT, Answer, Asked, Origin, Serving, Which, Wire};
use super::views;
use super::world::World;
use crate::{process, service_manager};

/// A proxy that lives greets at once.
const GREETING_TIMEOUT: Duration = Duration::from_secs(2);
/// One that lives and does not may only be slow, as everything is on a machine that is short of time: so often it is
/// asked before it is replaced, beside once by a server that starts. Not one that has greeted this server already.
const GREETINGS_STANDING: u32 = 2;
/// So often one that was just started: it may have to be read from a busy disk first, and nobody is served meanwhile
/// by anybody else.
const GREETINGS_STARTED: u32 = 15;
/// So often one whose predecessors were all too slow, and one that has greeted before: all that it serves is in it.
const GREETINGS_MAX: u32 = 30;
/// How long a proxy may take for each app that it is told when a connection begins. It is usually read at once.
const TAKING_TIMEOUT: Duration = Duration::from_secs(10);
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

/// A proxy that outlived an earlier server, if there is one. From now on drains are asked of it, because it
/// carries what is in flight; it hears them when its session begins. So they are of one that lives and does not greet in
/// time: [`keep`] has more patience with it.
pub(crate) async fn find(world: &Arc<World>) -> Option<Standing> {
    let Ok(standing) = connect(&world.paths.proxy_socket()).await else {
        if living(world).is_some() {
            tracing::info!("the proxy lives and does not answer yet; it is asked again");
            world.proxy.current_parted();
        }
        return None;
    };
    world.proxy.connected();
    // The server may be told to end before the first session begins.
    recognize(world, standing.0.pid());
    Some(standing)
}

/// Remembers which process a proxy is that has greeted. One that an earlier server has started is in no other way known.
fn recognize(world: &World, pid: u32) {
    let record = world.paths.proxy_record();
    if process::recall(&record).is_none()
        && let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw)
        && let Err(error) = process::remember(pid, &record)
    {
        tracing::warn!(%error, "could not write down which process the proxy is");
    }
    if let Some(process) = process::recall(&record) {
        world.proxy.set_process(Some(process));
    }
}

/// A connection whose session has not begun.
pub(crate) type Standing = (Link, NamedListeners);

/// Whether another proxy is to have the listeners of this one: an earlier server's, that is another program than this
/// server or whose server was replaced on demand. Whether it has greeted early or late is all the same.
pub(crate) fn is_outdated(serving: Serving, is_upgrade: bool) -> bool {
    let program = |process: &str| {
        std::fs::metadata(format!("/proc/{process}/exe")).map(|file| (file.dev(), file.ino())).ok()
    };
    let is_another = || {
        let theirs = program(&serving.pid.to_string());
        theirs.is_some() && theirs != program("self")
    };
    serving.origin == Origin::Former && (is_upgrade || is_another())
}

/// Keeps a proxy connected until the server ends; begins with the one that was found, if any. Else the
/// first proxy gets the listeners that outlived an earlier server and its proxy, if they did.
pub(crate) async fn keep(
    world: Arc<World>,
    mut answers: mpsc::Receiver<ToProxy>,
    mut found: Option<Standing>,
    kept: Option<NamedListeners>,
) -> Option<Listeners> {
    let mut listeners = kept.and_then(|kept| completed(&world, kept));
    let (mut unanswered, mut patience) = (0, Patience::default());
    while !world.shutdown.is_cancelled() {
        let connected = match found.take() {
            Some(standing) => Ok(standing),
            None => {
                // What was meant for a proxy that is gone would confuse its successor.
                while answers.try_recv().is_ok() {}
                connect(&world.paths.proxy_socket()).await
            }
        };
        match connected {
            Ok((link, theirs)) => {
                unanswered = 0;
                patience.greeted();
                if let Some(theirs) = completed(&world, theirs) {
                    entrust(&theirs);
                    listeners = Some(theirs);
                }
                let (began, pid) = (Instant::now(), link.pid());
                recognize(&world, pid);
                let role = Role::Current(patience.origin);
                let ended = session(&world, link, &mut answers, role).await;
                if matches!(ended, Ok(Over::Replaced)) {
                    listeners = retired::retire(&world, pid, listeners);
                    continue;
                }
                world.proxy.questions.forget();
                // Also when it is the server that ends: nobody has said that anything is empty.
                if living(&world).is_some() {
                    world.proxy.current_parted();
                } else {
                    current_is_gone(&world);
                }
                rest_after(ended, began.elapsed()).await;
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
                current_is_gone(&world);
                if respawn(&world, &mut listeners).await {
                    patience.started();
                }
            }
        }
    }
    listeners
}

fn current_is_gone(world: &Arc<World>) {
    for stop in world.proxy.gone(Which::Current) {
        do_stop(world, stop);
    }
}

/// With what is missing made anew; [`None`] if that cannot be.
fn completed(world: &World, named: NamedListeners) -> Option<Listeners> {
    let completed = Listeners::from_named(named, |name| make_listener(world, name));
    completed
        .inspect_err(|error| tracing::error!(error = format!("{error:#}"), "listeners are missing"))
        .ok()
}

/// How long a proxy that lives may say nothing. A successor has no more time than its predecessor had and all its work
/// still to do: without more patience each of them would end before it could serve.
#[derive(Debug, Clone, Copy, Default)]
struct Patience {
    origin: Origin,
    /// It has greeted this server, so it is the right one, and only stalled.
    has_greeted: bool,
    /// How many of ours in a row were replaced before they greeted.
    replaced: u32,
}

impl Patience {
    /// How often it is asked.
    fn greetings(self) -> u32 {
        if self.has_greeted {
            return GREETINGS_MAX;
        }
        if self.origin == Origin::Former {
            return GREETINGS_STANDING;
        }
        let doubled = 1_u32.checked_shl(self.replaced).unwrap_or(GREETINGS_MAX);
        GREETINGS_STARTED.saturating_mul(doubled).min(GREETINGS_MAX)
    }

    fn greeted(&mut self) {
        self.has_greeted = true;
        self.replaced = 0;
    }

    fn replaced(&mut self) {
        self.has_greeted = false;
        self.replaced = self.replaced.saturating_add(u32::from(self.origin == Origin::Own));
    }

    fn started(&mut self) {
        self.has_greeted = false;
        self.origin = Origin::Own;
    }
}

/// Waits after a session that did not end by the server's wish, before the next.
async fn rest_after(ended: Result<Over, LinkError>, lived: Duration) {
    match ended {
        Ok(Over::Ended | Over::Replaced) => {}
        Ok(Over::Overran) => tokio::time::sleep(RESPAWN_PAUSE).await,
        Err(error) => {
            tracing::warn!(error = super::images::chain(&error), "the proxy's connection ended");
            tokio::time::sleep(pause_after(&error, lived)).await;
        }
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

async fn connect(socket: &Path) -> Result<Standing, LinkError> {
    let connecting = Link::connect(socket);
    match tokio::time::timeout(GREETING_TIMEOUT, connecting).await {
        Ok(connected) => connected,
        Err(_elapsed) => Err(LinkError::Closed),
    }
}

/// The proxy that was started or written down last, if it lives.
pub(crate) fn living(world: &World) -> Option<Arc<OwnedFd>> {
    let recalled = || process::recall(&world.paths.proxy_record()).map(Arc::new);
    world.proxy.process().or_else(recalled).filter(|it| !process::ends_within(it, Duration::ZERO))
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

/// Starts a proxy; whether that was possible. The listeners are kept also if not: who waits in them is served later.
async fn respawn(world: &Arc<World>, listeners: &mut Option<Listeners>) -> bool {
    let (owner, own) = (world.clone(), listeners.take());
    let spawned = tokio::task::spawn_blocking(move || {
        let listeners = own.map_or_else(|| make_all_listeners(&owner), Ok)?;
        let started = spawn_proxy(&owner, &listeners);
        anyhow::Ok((listeners, started))
    });
    let spawned = spawned.await.map_err(anyhow::Error::from).flatten();
    let started = spawned.and_then(|(kept, started)| {
        *listeners = Some(kept);
        started
    });
    if let Err(error) = &started {
        tracing::error!(error = format!("{error:#}"), "could not start a proxy");
        tokio::time::sleep(RESPAWN_PAUSE).await;
    }
    started.is_ok()
}

/// Starts a proxy process inside the plane and hands it copies of the listeners.
fn spawn_proxy(world: &World, listeners: &Listeners) -> anyhow::Result<()> {
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
    Ok(())
}

/// Remembers the proxy, also for the next server and for `perch down`, before it can do anything: without its sockets
/// it only waits.
fn register(world: &World, pid: Pid) -> anyhow::Result<()> {
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty());
    world.proxy.set_process(Some(pidfd.context("could not watch the proxy")?));
    let path = world.paths.proxy_record();
    process::remember(pid, &path).with_context(|| format!("could not write {}", path.display()))
}

/// The proxy's own words outlive the server's standard error. It is read where it is made shorter ([`crate::logging`]).
/// Each proxy has it opened anew, since a lock is that of who has opened a file.
fn proxy_log(world: &World) -> anyhow::Result<std::fs::File> {
    let path = world.paths.data.join("proxy.log");
    let opened = std::fs::File::options().create(true).read(true).append(true).open(&path);
    opened.with_context(|| format!("could not open {}", path.display()))
}

fn make_all_listeners(world: &World) -> anyhow::Result<Listeners> {
    service_manager::forget().context("could not tell the service manager")?;
    Listeners::from_named(Vec::new(), |name| make_listener(world, name))
}

/// Makes one of those of [`Listeners::NAMES`].
fn make_listener(world: &World, name: &'static str) -> anyhow::Result<OwnedFd> {
    let plane = |which| world.plane.listener(which).map_err(anyhow::Error::from);
    let udp = |address: &str| Ok(std::net::UdpSocket::bind(address).map(OwnedFd::from)?);
    let tcp = |family| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
    };
    let made = match name {
        "proxy-tcp6" => plane(Listening::Tcp6),
        "proxy-tcp4" => plane(Listening::Tcp4),
        "proxy-udp6" => plane(Listening::Udp6),
        "proxy-dns-udp" => plane(Listening::DnsUdp),
        "proxy-dns-tcp" => plane(Listening::DnsTcp),
        "proxy-forward4" => udp("0.0.0.0:0"),
        "proxy-forward6" => udp("[::]:0"),
        "proxy-forward-tcp4" => tcp(AddressFamily::INET),
        "proxy-forward-tcp6" => tcp(AddressFamily::INET6),
        _ => Err(anyhow::anyhow!("nobody knows how")),
    };
    made.with_context(|| format!("could not make the socket {name}"))
}

/// Whose connection it is.
#[derive(Debug, Clone, Copy)]
enum Role<'a> {
    /// That of the proxy that has the listeners, or is about to.
    Current(Origin),
    /// Of one that has not, or is about to leave them.
    Retired(u64, &'a Wire),
}

impl Role<'_> {
    fn which(self) -> Which {
        match self {
            Self::Current(_) => Which::Current,
            Self::Retired(number, _) => Which::Retired(number),
        }
    }
}

/// Why a connection is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// The server ends.
    Ended,
    /// Another proxy is to take its place.
    Replaced,
    /// The proxy does not take what it is told.
    Overran,
}

async fn session(
    world: &Arc<World>,
    link: Link,
    answers: &mut mpsc::Receiver<ToProxy>,
    role: Role<'_>,
) -> Result<Over, LinkError> {
    let (wire, number) = match role {
        Role::Current(_) => (&**world.proxy.current(), world.proxy.begin_session()),
        Role::Retired(number, wire) => (wire, number),
    };
    if let Role::Current(_) = role {
        // What is asked from now on waits for the end of the snapshot; what was asked before is part of it.
        world.proxy.connected();
    }
    let mut open = Open::new(link);
    let told = async {
        freezers::look_for_thawed(world).await;
        let apps = send_views(world, &mut open.sender, TAKING_TIMEOUT).await?;
        // What finds no room until here ends nothing: the proxy has asked nothing yet, and is told what is waited for now.
        wire.begin(answers);
        tokio::select! {
            biased;
            () = wire.overran() => Ok(Over::Overran),
            over = talk(world, open, apps, answers, role, (wire, number)) => over,
        }
    };
    tokio::select! {
        biased;
        // Like too much that waits: also in the middle of a message, which a proxy that does not read would hold up for ever.
        () = world.shutdown.cancelled() => Ok(Over::Ended),
        over = told => over,
    }
}

/// A connection over which something is told.
struct Open {
    pid: u32,
    retires: bool,
    handed: Option<Handed>,
    sender: LinkSender,
    receiver: LinkReceiver,
}

impl Open {
    fn new(link: Link) -> Self {
        let (pid, retires) = (link.pid(), link.retires());
        let handed = link.thaws().then(Handed::default);
        let (sender, receiver) = link.into_split();
        Self { pid, retires, handed, sender, receiver }
    }
}

/// From the end of the views on.
async fn talk(
    world: &Arc<World>,
    open: Open,
    apps: Vec<String>,
    answers: &mut mpsc::Receiver<ToProxy>,
    role: Role<'_>,
    (wire, number): (&Wire, u64),
) -> Result<Over, LinkError> {
    let Open { pid, retires, mut handed, mut sender, mut receiver } = open;
    for message in world.proxy.outstanding(role.which()) {
        sender.send(&message).await?;
    }
    sender.send(&ToProxy::SnapshotEnd).await?;
    hand_over(world, &mut sender, &mut handed, apps).await?;
    let mut successor = world.proxy.serving();
    let mut is_told = false;
    if let Role::Current(origin) = role {
        world.proxy.set_serving(Serving { pid, origin });
    }
    loop {
        tokio::select! {
            message = receiver.recv() => hear(world, message?, (role.which(), pid), number),
            answer = answers.recv() => {
                let Some(answer) = answer else { return Ok(Over::Ended) };
                // The view first: an answer may be about a state that only the view tells.
                let apps = send_changes(world, wire, &mut sender).await?;
                if !world.proxy.is_void(&answer, role.which()) {
                    sender.send(&answer).await?;
                }
                hand_over(world, &mut sender, &mut handed, apps).await?;
            }
            () = wire.wake.notified() => {
                let apps = send_changes(world, wire, &mut sender).await?;
                hand_over(world, &mut sender, &mut handed, apps).await?;
            }
            () = retired::has_successor(&mut successor, pid), if !is_told && role.which() != Which::Current => {
                is_told = true;
                retired::tell(world, &mut sender, pid, retires).await?;
            }
            () = world.proxy.replaced(pid), if role.which() == Which::Current => return Ok(Over::Replaced),
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

/// The settings and every app; which these are. A proxy that does not take one of them for so long is given up: no server
/// is ready before one was told all.
async fn send_views(
    world: &Arc<World>,
    sender: &mut LinkSender,
    limit: Duration,
) -> Result<Vec<String>, LinkError> {
    let too_slow = |elapsed: Elapsed| LinkError::Io { what: "send to", source: elapsed.into() };
    let settings = ToProxy::Settings(views::settings(world));
    tokio::time::timeout(limit, sender.send(&settings)).await.map_err(too_slow)??;
    let apps: Vec<String> = world.keeper.read().apps.keys().cloned().collect();
    for app in &apps {
        tokio::time::timeout(limit, send_app(world, sender, app)).await.map_err(too_slow)??;
    }
    Ok(apps)
}

async fn send_changes(
    world: &Arc<World>,
    wire: &Wire,
    sender: &mut LinkSender,
) -> Result<BTreeSet<String>, LinkError> {
    if wire.take_settings_changed() {
        sender.send(&ToProxy::Settings(views::settings(world))).await?;
    }
    let changed = wire.take_changed();
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

// long: one arm for each message
fn hear(world: &Arc<World>, message: FromProxy, (which, pid): (Which, u32), session: u64) {
    match message {
        FromProxy::Hello { .. } => {}
        FromProxy::Retired { left } => {
            tracing::info!(
                left,
                "a proxy has left its listeners; it ends when everybody it has was served"
            );
            world.proxy.note_left(pid, left);
        }
        FromProxy::Start { machine, attempt, cause, thawed } => {
            world.proxy.start_asked(&machine, attempt);
            let event = lifecycle::Event::Start(StartBy::Proxy { attempt });
            let text = views::wake_text(cause.as_ref(), thawed);
            let waking = Some(Box::new(Waking { cause, thawed }));
            if !tell(world, &machine, event, text, waking, session) {
                let reason = "the Machine is gone".to_owned();
                world.proxy.start_done(&machine, attempt, StartOutcome::Refused { reason });
            }
        }
        FromProxy::Stop { machine, run, attempt, reason } => {
            // A retired one asks for none, unless its successor does not serve yet.
            if which == Which::Current {
                match world.proxy.ask_retired((machine, run, attempt), reason, session) {
                    Answer::Now(stop) => do_stop(world, stop),
                    Answer::Later(token) => give_up_in_time(world, token),
                }
            } else {
                world.proxy.refuse_stop(which, machine, attempt);
            }
        }
        FromProxy::Drained { token, in_flight, .. } => {
            let agreed = world.proxy.drained(which, token, in_flight);
            agreed.into_iter().for_each(|stop| do_stop(world, stop));
        }
        FromProxy::Note(note) => enter(world, *note),
        FromProxy::Live { token, live } => {
            world.proxy.questions.answered_live(which, token, live.map(|live| *live));
        }
        FromProxy::Counts { token, apps, last } => {
            world.proxy.questions.answered_counts(token, apps, last);
        }
        // Both look; one is enough.
        FromProxy::Checks { .. } if which != Which::Current => {}
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

/// Retired proxies were asked something: one that does not answer does not agree.
fn give_up_in_time(world: &Arc<World>, token: u64) {
    let world = world.clone();
    world.tracker.clone().spawn(async move {
        tokio::select! {
            () = tokio::time::sleep(ANSWER_TIMEOUT) => {}
            () = world.shutdown.cancelled() => return,
        }
        world.proxy.overdue(token).into_iter().for_each(|stop| do_stop(&world, stop));
    });
}

/// A stop that all retired proxies have said something of.
fn do_stop(world: &Arc<World>, stop: Asked) {
    let Asked { machine, run, attempt, reason, session, refused, .. } = stop;
    if let Some(why) = refused {
        let app = world.keeper.read().machines.get(&machine).map(|it| it.app.clone());
        let unix_micros = clock::unix().as_micros() as u64;
        let note = Note::veto((app.unwrap_or_default(), machine, run), why.to_owned(), unix_micros);
        enter(world, note);
        return;
    }
    let event = lifecycle::Event::Stop(StopBy::Proxy { run, attempt });
    if !tell(world, &machine, event, reason, None, session) {
        world.proxy.stop_done(&machine, attempt, StopOutcome::Stopped);
    }
}

fn tell(
    world: &Arc<World>,
    machine: &str,
    event: lifecycle::Event,
    cause: String,
    waking: Option<Box<Waking>>,
    session: u64,
) -> bool {
    let command = MachineCommand::FromProxy { event, cause, waking, session };
    world.handle(machine).is_some_and(|it| it.tell(command))
}

/// Into the ledger, as it was when the proxy saw it.
fn enter(world: &World, note: Note) {
    let status = note.machine.as_deref().and_then(|id| world.handle(id)).map(|it| it.status());
    let history = status.map_or_else(Vec::new, |status| status.history.newest_first());
    let unix_micros = note.unix_micros;
    let mut event = entry::of_note(note, &history);
    if event.reason == HELD_TEXT {
        let held = super::api::why_held(world, &event.machine, event.run);
        event.reason = held.into_iter().map(|held| held.text).collect::<Vec<_>>().join("; ");
    }
    world.ledger.enter(event, Some(unix_micros));
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
mod tests;
