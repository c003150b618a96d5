//! `proxy`: a local port whose connections go through the API to an address in the app's network.
//!
//! At a Flycast address a connection wakes the app, exactly as one from a Machine does.

use super::Context;
use crate::args::Proxy;
use crate::failure::{Failure, Outcome};
use perch_api::wire::IpKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// More at a time than any person's tools open; beyond, connections wait in the listener.
const CONNECTIONS_MAX: usize = 1024;

pub(super) async fn run(context: &Context<'_>, args: Proxy) -> Outcome {
    let (local, remote) = parse_ports(&args.ports)?;
    let app = context.app_name(&args.app)?;
    let host = match args.host {
        Some(host) => host,
        None => default_host(context, &app).await?,
    };
    let listener = listen(&args.bind_addr, local).await?;
    let local = listener.local_addr()?;
    if !args.quiet {
        let shown = if args.bind_addr == "127.0.0.1" { "localhost" } else { &args.bind_addr };
        let port = local.port();
        context
            .console
            .line(format!("Proxying {shown}:{port} to remote {}:{remote}", bracketed(&host)));
    }
    let tasks = tokio::task::LocalSet::new();
    tasks.run_until(serve(context, listener, &app, &host, remote)).await
}

async fn serve(
    context: &Context<'_>,
    listener: TcpListener,
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
                let (stream, _) = accepted?;
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
    mut local: TcpStream,
    app: &str,
    host: &str,
    port: u16,
) -> Outcome {
    let mut remote = client.open_stream(app, host, port).await?;
    // Either side may break the connection at any time; that is its right and no failure of ours.
    if let Err(error) = tokio::io::copy_bidirectional(&mut local, &mut remote).await
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

async fn listen(address: &str, port: u16) -> Outcome<TcpListener> {
    let address = if address == "localhost" { "127.0.0.1" } else { address };
    let ip: IpAddr = address.parse().map_err(|_| {
        Failure::new(format!("'{address}' is not an IP address"))
            .hint("Use -b 127.0.0.1 or -b 0.0.0.0")
    })?;
    let listener = TcpListener::bind(SocketAddr::new(ip, port)).await;
    listener.map_err(|error| {
        Failure::from(error).context(format!("could not listen on {address}:{port}"))
    })
}

/// `8080:80`, or one number for both.
fn parse_ports(text: &str) -> Outcome<(u16, u16)> {
    let (local, remote) = text.split_once(':').unwrap_or((text, text));
    let port = |text: &str| text.parse::<u16>().ok();
    match (port(local), port(remote)) {
        (Some(local), Some(remote)) if remote > 0 => Ok((local, remote)),
        _ => Err(Failure::new(format!("'{text}' does not name two ports"))
            .hint("Write LOCAL:REMOTE, such as `fly proxy 8080:80`")),
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_a_pair_or_one_for_both() {
        let ports = |text: &str| parse_ports(text).ok();
        assert_eq!(ports("8080:80"), Some((8080, 80)));
        assert_eq!(ports("80"), Some((80, 80)));
        for bad in ["", "x:80", "80:0", "70000:80", "1:2:3"] {
            assert_eq!(ports(bad), None, "{bad}");
        }
    }
}
