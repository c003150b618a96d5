//! Raw TCP: bytes in both directions, ends passed on one by one.

use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::WriteHalf;
use tokio::time::Instant;

use crate::app::{App, Asked, NoPlace, Place, PortFacts, Ruling};
use crate::buffer::{BUFFER_BYTES, read_some_of};
use crate::crowd::Idle;
use crate::directory::{Destination, Directory};
use crate::identity::Consent;
use crate::line::Line;
use crate::moderation;
use crate::pipe::{self, BULK_BYTES};
use crate::presence::What;
use crate::proxy_header::ProxyHeader;
use crate::upstream::{self, NoConnection, Used};

/// A connection that is reset, not ended, if it is dropped midway: whoever is at its other end must
/// not take a cut for an end.
pub(crate) struct Stream {
    pub(crate) tcp: TcpStream,
    pub(crate) midway: bool,
}

impl Stream {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        Self { tcp, midway: false }
    }

    pub(crate) fn midway(tcp: TcpStream) -> Self {
        Self { tcp, midway: true }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.midway {
            reset(&self.tcp);
        }
    }
}

/// Serves a raw connection until both sides have ended it. Nothing is read from the caller before a
/// Machine has accepted.
pub(crate) async fn serve(
    caller: TcpStream,
    (directory, idle): (Rc<Directory>, Rc<Idle>),
    to: Destination,
    app: Rc<App>,
    facts: PortFacts,
) {
    idle.presence.begin(What::Raw, moderation::turn());
    let mut caller = Stream::midway(caller);
    let guarded = facts.guarded.then(|| directory.ruling(&to, (&app, to.port()), Asked::Bytes));
    let connected = match guarded {
        Some(Ruling::Refused(_)) => return,
        Some(Ruling::IfAwake) => connect_awake(&caller.tcp, &directory, &to, &app, &facts).await,
        Some(Ruling::Wake) | None => {
            if facts.first_byte
                && !app.is_up(to.port())
                && first_byte(&caller.tcp, &directory, &idle).await.is_none()
            {
                return;
            }
            idle.presence.begin(What::Raw, moderation::turn());
            connect(&caller.tcp, &to, &app, &facts).await
        }
    };
    let Some((place, machine)) = connected else { return };
    let mut machine = Stream::midway(machine);
    if let Some(header) = facts.header
        && machine.tcp.write_all(&introduce(header, &directory, &to)).await.is_err()
    {
        return;
    }
    let line = Line::new(&place, &to, &facts, &idle.presence);
    if relay(&mut caller.tcp, &mut machine.tcp, &line, Said::default()).await.is_ok() {
        caller.midway = false;
        machine.midway = false;
    }
    drop((caller, machine));
    drop(place);
}

/// The PROXY protocol's header. It says who calls where a request would without being asked for it.
fn introduce(header: ProxyHeader, directory: &Directory, to: &Destination) -> Vec<u8> {
    match directory.signed(to) {
        Some((stamp, Consent::Given)) => {
            stamp.with_values(|values| header.of(to.endpoints, values))
        }
        Some((_, Consent::Asked)) | None => header.of(to.endpoints, None),
    }
}

/// Waits until the caller has said something; `None`: it leaves, or the proxy ends. Who says nothing has no right to
/// his place when others want it.
async fn first_byte(caller: &TcpStream, directory: &Directory, idle: &Idle) -> Option<()> {
    let ends = directory.ending.closes();
    if directory.ending.closes_idle() {
        return None;
    }
    idle.begin(Instant::now());
    let mut byte = [0];
    let heard = tokio::select! {
        heard = caller.peek(&mut byte) => heard.ok()?,
        () = ends => 0,
    };
    idle.end();
    (heard != 0).then_some(())
}

/// For who may wake nobody.
async fn connect_awake(
    caller: &TcpStream,
    directory: &Directory,
    to: &Destination,
    app: &Rc<App>,
    facts: &PortFacts,
) -> Option<(Place, TcpStream)> {
    let Some(place) = app.choose_awake(to.port(), None) else {
        directory.note_not_awake(to, app, Asked::Bytes);
        return None;
    };
    let deadline = Instant::now() + facts.start_timeout;
    let machine = place.endpoint().machine;
    match unless_reset(caller, upstream::connect(&place, deadline, Used::Refused)).await? {
        Ok(machine) => Some((place, machine.stream)),
        Err(error) => {
            app.log(Some(machine), &error.to_string());
            None
        }
    }
}

async fn connect(
    caller: &TcpStream,
    to: &Destination,
    app: &Rc<App>,
    facts: &PortFacts,
) -> Option<(Place, TcpStream)> {
    let deadline = Instant::now() + facts.start_timeout;
    loop {
        let place = unless_reset(caller, place(to, app, deadline)).await?;
        let place = place.map_err(|error| app.log(None, &error.to_string())).ok()?;
        let machine = place.endpoint().machine;
        match unless_reset(caller, upstream::connect(&place, deadline, Used::Refused)).await? {
            Ok(machine) => {
                place.note_connected();
                place.note_answered();
                return Some((place, machine.stream));
            }
            Err(NoConnection::Gone) if Instant::now() < deadline => {}
            Err(error) => {
                app.log(Some(machine), &error.to_string());
                return None;
            }
        }
    }
}

async fn place(to: &Destination, app: &Rc<App>, deadline: Instant) -> Result<Place, NoPlace> {
    let origin = to.origin(app);
    match app.choose(to.port(), origin) {
        Ok(place) => Ok(place),
        Err(None) => {
            app.note_refused(to.cause(None));
            Err(NoPlace::Refused)
        }
        Err(Some(reason)) => app.hold(to.port(), to.cause(None), origin, reason, deadline).await,
    }
}

/// Runs `work` unless the caller resets the connection. A caller that only ended its side may still
/// want an answer, so that does not count.
pub(crate) async fn unless_reset<T>(
    caller: &TcpStream,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = pin!(work);
    let mut error = pin!(caller.ready(Interest::ERROR));
    let mut watching = true;
    std::future::poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Some(done));
        }
        if watching && error.as_mut().poll(cx).is_ready() {
            watching = false;
            return Poll::Ready(None);
        }
        Poll::Pending
    })
    .await
}

/// What was read of both sides before their bytes went to each other.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) by_caller: Vec<u8>,
    pub(crate) by_machine: Vec<u8>,
}

/// Passes on what each side says until both have ended.
pub(crate) async fn relay(
    caller: &mut TcpStream,
    machine: &mut TcpStream,
    line: &Line<'_>,
    said: Said,
) -> io::Result<()> {
    let (caller_read, mut caller_write) = caller.split();
    let (machine_read, mut machine_write) = machine.split();
    let asking = ask(line, caller_read.as_ref(), &mut machine_write, said.by_caller);
    let up = async { unless_told(line, asking.await).await };
    let down = async {
        let (machine, caller) = (machine_read.as_ref(), &mut caller_write);
        match line.socket() {
            None => answer(line, machine, caller, said.by_machine).await,
            Some(socket) => socket.answer(line, machine, caller, said.by_machine).await,
        }
    };
    tokio::select! {
        // What came before a reset is passed on first.
        biased;
        done = async { tokio::try_join!(up, down).map(|_| ()) } => done,
        // A side that takes nothing must not hide that the other is gone.
        error = failed(caller_read.as_ref()) => Err(error),
        error = failed_for(line, machine_read.as_ref()) => Err(error),
        never = line.rest() => match never {},
    }
}

async fn failed(stream: &TcpStream) -> io::Error {
    let failed = stream.ready(Interest::ERROR).await;
    failed.err().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
}

/// A WebSocket's caller hears why its Machine has gone before the connection breaks, if it listens.
async fn failed_for(line: &Line<'_>, machine: &TcpStream) -> io::Error {
    let error = failed(machine).await;
    if let Some(socket) = line.socket() {
        socket.give_time().await;
    }
    error
}

/// The same for who has something to say to it; who has heard it, and has ended its side, is done.
async fn unless_told(line: &Line<'_>, asked: io::Result<()>) -> io::Result<()> {
    let Some(socket) = line.socket() else { return asked };
    match asked {
        Ok(()) if socket.has_told() => Err(io::ErrorKind::ConnectionAborted.into()),
        Ok(()) => Ok(()),
        Err(error) => {
            socket.give_time().await;
            Err(error)
        }
    }
}

async fn ask(
    line: &Line<'_>,
    caller: &TcpStream,
    machine: &mut WriteHalf<'_>,
    said: Vec<u8>,
) -> io::Result<()> {
    if !said.is_empty() {
        line.note_asked();
        if let Some(socket) = line.socket() {
            socket.asks(&said);
        }
        line.until_passed_on(machine.write_all(&said)).await?;
    }
    drop(said);
    loop {
        let bytes = line.read(caller).await?;
        if bytes.is_empty() {
            return machine.shutdown().await;
        }
        moderation::count_piece(bytes.filled().len());
        line.until_passed_on(machine.write_all(bytes.filled())).await?;
        let mut bulk = bytes.filled().len();
        drop(bytes);
        while BULK_BYTES <= bulk
            && let Some(pipe) = line.read_bulk(caller).await?
        {
            bulk = pipe.len();
            line.until_passed_on(pipe.pour(machine.as_ref(), |_| line.idle().note())).await?;
        }
    }
}

async fn answer(
    line: &Line<'_>,
    machine: &TcpStream,
    caller: &mut WriteHalf<'_>,
    said: Vec<u8>,
) -> io::Result<()> {
    if !said.is_empty() {
        line.until_taken(caller.write_all(&said)).await?;
    }
    drop(said);
    loop {
        let bytes = read_some_of(machine, BUFFER_BYTES).await?;
        line.hear_answer(bytes.filled().len());
        if bytes.is_empty() {
            return caller.shutdown().await;
        }
        moderation::count_piece(bytes.filled().len());
        line.until_taken(caller.write_all(bytes.filled())).await?;
        let mut bulk = bytes.filled().len();
        drop(bytes);
        while BULK_BYTES <= bulk
            && let Some(pipe) = pipe::read_bulk(machine, usize::MAX, || true).await?
        {
            bulk = pipe.len();
            line.hear_answer(bulk);
            line.until_taken(pipe.pour(caller.as_ref(), |_| line.idle().note())).await?;
        }
    }
}

/// Makes the coming close a reset.
pub(crate) fn reset(stream: &TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(%error, "could not reset a connection");
    }
}
