//! `proxy`: a local port whose connections go through the API to an address in the app's network.
//!
//! At a Flycast address a connection wakes the app, exactly as one from a Machine does.

use super::Context;
use crate::args::Proxy;
use crate::failure::{Failure, Outcome};
use crate::prompt;
use perch_api::wire::{App, IpKind, Machine, MachineFilter, MachineState};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

/// A caller's connection.
type Stream = Box<dyn Duplex>;

trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

/// More at a time than any person's tools open; beyond, connections wait in the listener.
const CONNECTIONS_MAX: usize = 1024;

pub(super) async fn run(context: &Context<'_>, args: Proxy) -> Outcome {
    let ports = parse_ports(&args.ports)?;
    let _until_ended = context.interrupt.hold();
    let (app, host) = context.interrupt.cut(target(context, &args)).await?;
    let listener = Listener::open(&args.bind_addr, &ports.local).await?;
    let (local, remote) = (listener.shown()?, ports.remote);
    context.console.line(format!("Proxying {local} to remote [{host}]:{remote}"));
    let tasks = tokio::task::LocalSet::new();
    let serving = tasks.run_until(serve(context, &listener, &app, &host, remote));
    tokio::select! {
        result = serving => result,
        () = stdin_closed(args.watch_stdin) => Ok(()),
        // Ctrl-C is how a proxy is meant to end.
        () = context.interrupt.pressed() => Ok(()),
    }
}

/// The app in whose network we are, and the host in it.
async fn target(context: &Context<'_>, args: &Proxy) -> Outcome<(String, String)> {
    let app = app(context, args).await?;
    let host = match (args.select, args.host.as_deref()) {
        (true, _) => chosen_machine(context, &app).await?,
        (false, Some(host)) => host.to_owned(),
        (false, None) => default_host(context, &app).await?,
    };
    Ok((app, host))
}

/// The app whose network the connections come from: without one of the user's, any of the organization
/// that is named, as long as the host is named too.
async fn app(context: &Context<'_>, args: &Proxy) -> Outcome<String> {
    if let Some(app) = context.app_if_named(&args.app)? {
        return Ok(app);
    }
    if args.select {
        return Err(Failure::new("--app required when --select flag provided"));
    }
    let org = context.org(args.org.org.clone()).await?.slug;
    let apps = context.client.list_apps(Some(&org)).await?;
    let in_default = |app: &&App| !super::apps::has_own_network(app);
    match (apps.iter().find(in_default), &args.host) {
        (Some(app), Some(_)) => Ok(app.name.clone()),
        (_, None) => Err(Failure::new("neither an app nor a host is named").hint(
            "Write `fly proxy LOCAL:REMOTE -a APP`, or `fly proxy LOCAL:REMOTE HOST -o ORG`",
        )),
        (None, _) => Err(Failure::new(format!(
            "organization {org} has no app in its default network to connect from"
        ))
        .hint("Name an app with -a")),
    }
}

/// A Machine's own address, which wakes nothing.
async fn chosen_machine(context: &Context<'_>, app: &str) -> Outcome<String> {
    let machines = context.client.list_machines(app, &MachineFilter::default()).await?;
    let running: Vec<_> =
        machines.iter().filter(|machine| machine.state == MachineState::Started).collect();
    if running.is_empty() {
        return Err(Failure::new(format!("no Machine of {app} is started")).hint(
            "Start one with `fly machine start`, or leave out --select: a connection to the \
                   Flycast address wakes one",
        ));
    }
    let label = |machine: &&Machine| {
        let Machine { id, region, private_ip, .. } = machine;
        format!("{region} (Machine {id}) {private_ip}")
    };
    let options: Vec<_> = running.iter().map(label).collect();
    let chosen = prompt::select(context.console, "Select instance:", 0, &options)
        .map_err(|failure| failure.context("selecting instance"))?;
    Ok(running[chosen].private_ip.to_string())
}

/// Resolves when nobody can write to stdin any more; what is written is passed over.
async fn stdin_closed(watched: bool) {
    if !watched {
        return std::future::pending().await;
    }
    let (tell, told) = tokio::sync::oneshot::channel();
    // A read of stdin cannot be taken back, so it has a thread that ends with the process.
    std::thread::spawn(move || {
        // An error of stdin is its end too.
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap_or_default();
        tell.send(()).unwrap_or_default();
    });
    told.await.unwrap_or_default();
}

async fn serve(
    context: &Context<'_>,
    listener: &Listener,
    app: &str,
    host: &str,
    port: u16,
) -> Outcome {
    let limit = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (failures, mut failed) = tokio::sync::mpsc::channel::<String>(CONNECTIONS_MAX);
    loop {
        let permit = limit.clone().acquire_owned().await?;
        tokio::select! {
            accepted = listener.accept() => {
                let stream = accepted?;
                let (client, failures) = (context.client.clone(), failures.clone());
                let (app, host) = (app.to_owned(), host.to_owned());
                tokio::task::spawn_local(async move {
                    if let Err(failure) = forward(&client, stream, &app, &host, port).await {
                        // A full channel means that the same message is shown many times already.
                        failures.try_send(failure.message()).unwrap_or_default();
                    }
                    drop(permit);
                });
            }
            Some(message) = failed.recv() => context.console.note(message),
        }
    }
}

async fn forward(
    client: &perch_api::Client,
    local: Stream,
    app: &str,
    host: &str,
    port: u16,
) -> Outcome {
    let remote = client.open_stream(app, host, port).await?;
    // Either side may break the connection at any time; that is its right and no failure of ours.
    if let Err(error) = perch_api::relay(local, remote).await
        && error.kind() == std::io::ErrorKind::Other
    {
        return Err(error.into());
    }
    Ok(())
}

/// A Flycast address wakes the app; without one there is the Machines' own name.
async fn default_host(context: &Context<'_>, app: &str) -> Outcome<String> {
    let addresses = context.client.list_ips(app).await?;
    let private = addresses.iter().find(|address| address.kind == IpKind::PrivateV6);
    Ok(private.map_or_else(|| format!("{app}.internal"), |address| address.ip.to_string()))
}

/// What is listened on.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // A socket that somebody else has removed already is gone as it should be.
            std::fs::remove_file(path).unwrap_or_default();
        }
    }
}

impl Listener {
    async fn open(address: &str, local: &Local) -> Outcome<Self> {
        match local {
            Local::Port(port) => listen(address, *port).await.map(Self::Tcp),
            Local::Socket(path) => {
                let listener = UnixListener::bind(path).map_err(|error| {
                    let failure = Failure::from(error)
                        .context(format!("could not listen on {}", path.display()));
                    failure.hint("Name a path that is not there yet, in a directory of yours")
                })?;
                Ok(Self::Unix(listener, path.clone()))
            }
        }
    }

    /// As flyctl says it.
    fn shown(&self) -> Outcome<String> {
        Ok(match self {
            Self::Tcp(listener) => format!("localhost:{}", listener.local_addr()?.port()),
            Self::Unix(_, path) => format!("localhost:{}", path.display()),
        })
    }

    async fn accept(&self) -> std::io::Result<Stream> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener, _) => Box::new(listener.accept().await?.0),
        })
    }
}

async fn listen(address: &str, port: u16) -> Outcome<TcpListener> {
    let address = if address == "localhost" { "127.0.0.1" } else { address };
    let ip: IpAddr = address.parse().map_err(|_| {
        Failure::new(format!("'{address}' is not an IP address"))
            .hint("Use -b 127.0.0.1 or -b 0.0.0.0")
    })?;
    let listener = TcpListener::bind(SocketAddr::new(ip, port)).await;
    listener.map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AddrInUse => Some("Use another local port, or 0 for any free one"),
            std::io::ErrorKind::PermissionDenied => Some("Use a local port from 1024 on"),
            std::io::ErrorKind::AddrNotAvailable => Some("Use an address of this machine with -b"),
            _ => None,
        };
        let failure = Failure::from(error).context(format!("could not listen on {address}:{port}"));
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })
}

/// Where to listen, and where to go.
#[derive(Debug, PartialEq, Eq)]
struct Ports {
    local: Local,
    remote: u16,
}

#[derive(Debug, PartialEq, Eq)]
enum Local {
    Port(u16),
    Socket(PathBuf),
}

/// `8080:80`, `/path/to/socket:80`, or one number for both.
fn parse_ports(text: &str) -> Outcome<Ports> {
    let (local, remote) = text.rsplit_once(':').unwrap_or((text, text));
    let is_number = !local.is_empty() && local.bytes().all(|byte| byte.is_ascii_digit());
    let local = match local.parse::<u16>() {
        Ok(port) => Some(Local::Port(port)),
        Err(_) if local.contains('/') => Some(Local::Socket(PathBuf::from(local))),
        Err(_) => None,
    };
    match (local, remote.parse::<u16>()) {
        (Some(local), Ok(remote)) if remote > 0 => Ok(Ports { local, remote }),
        (None, _) if is_number => Err(Failure::new(format!("'{text}': a port is at most 65535"))
            .hint("Write LOCAL:REMOTE, such as `fly proxy 8080:80`")),
        _ => Err(Failure::new(format!("'{text}' does not name two ports"))
            .hint("Write LOCAL:REMOTE, such as `fly proxy 8080:80`, or ./SOCKET:REMOTE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_a_pair_or_one_for_both() {
        let ports = |text: &str| parse_ports(text).ok();
        let both = |local, remote| Some(Ports { local: Local::Port(local), remote });
        assert_eq!(ports("8080:80"), both(8080, 80));
        assert_eq!(ports("80"), both(80, 80));
        let socket = Local::Socket(PathBuf::from("/run/x.sock"));
        assert_eq!(ports("/run/x.sock:80"), Some(Ports { local: socket, remote: 80 }));
        for bad in ["", "x:80", "80:0", "70000:80", "1:2:3", "/run/x.sock"] {
            assert_eq!(ports(bad), None, "{bad}");
        }
    }
}
