//! The API over TCP: tokens as an operator makes them, `fly` as their holders use it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Network, Output, wait_until};

use crate::stage::{AWAKE, SOON, fly_toml, hello_image, on, private_app};

const CONFIG: &str = "listen_api = \"127.0.0.1:0\"\norganizations = [\"personal\", \"team\"]\n";

fn on_listening_host(test: impl FnOnce(&mut Host) -> Result<()>) {
    on(|| Host::start_with(Network::Open, CONFIG), test);
}

/// Where the newest server says that it listens.
fn address(host: &Host) -> Result<String> {
    let log = fs::read_to_string(host.server_log())?;
    let said = log.lines().rev().find_map(|line| line.strip_prefix("listening on "));
    Ok(said.context("the server says no address")?.to_owned())
}

fn token(host: &Host, verb: &[&str]) -> Result<Output> {
    let data = host.data_dir().to_string_lossy().into_owned();
    host.perch(&[&["token"], verb, &["--data-dir", &data]].concat())
}

/// Makes a token and returns what its holder sends.
fn made(host: &Host, flags: &[&str]) -> Result<String> {
    let output = token(host, &[&["create"], flags].concat())?;
    Ok(output.ok()?.trim().to_owned())
}

/// Runs `fly` in the test's directory as somebody without the socket.
fn far_fly(host: &Host, token: &str, args: &[&str]) -> Result<Output> {
    let api = format!("PERCH_API={}", address(host)?);
    let token = format!("PERCH_TOKEN={token}");
    let binary = std::env::var("PERCH_BIN")?;
    host.run("env", &[&["-u", "PERCH_SOCKET", &api, &token, &binary, "fly"], args].concat())
}

fn check_refused(output: &Output, words: &str) -> Result<()> {
    ensure!(output.status.code() == Some(1), "not refused: {output}");
    ensure!(output.stderr.contains(words), "{output} lacks {words}");
    Ok(())
}

/// Fails unless the newest event of this kind says who asked.
fn check_asker(
    host: &Host,
    machine: &str,
    kind: &str,
    what: &str,
    who: &serde_json::Value,
) -> Result<()> {
    let events = host.api(&format!("/v1/apps/web/machines/{machine}/events"))?;
    let event = events.as_array().into_iter().flatten().find(|event| event["type"] == kind);
    let event = event.with_context(|| format!("no {kind} in {events}"))?;
    ensure!(event["source"] == "user" && event["request"][what] == *who, "not named: {event}");
    Ok(())
}

#[test]
fn a_holder_of_a_token_deploys_from_afar_and_is_named_in_what_he_did() {
    on_listening_host(|host| {
        let ci = made(host, &["--name", "ci", "--org", "personal"])?;
        ensure!(ci.starts_with("perch_") && ci.len() == 83, "not a token: {ci}");
        let image = hello_image(host)?;
        let dir = host.app_dir("web", &fly_toml("web", &image, AWAKE))?;
        let config = dir.join("fly.toml").to_string_lossy().into_owned();
        let launch = ["launch", "--flycast", "--copy-config", "--config", &config, "--yes"];
        far_fly(host, &ci, &[&launch[..], &["--name", "web"]].concat())?.ok()?;
        host.wait_all("web", "started", SOON)?;
        let releases = host.api("/api/v1/apps/web/releases")?;
        ensure!(releases["releases"][0]["user"] == "token ci", "not named: {releases}");
        let machine = host.machines("web")?.pop().context("a Machine")?.id;
        check_asker(host, &machine, "launch", "token", &"ci".into())?;
        host.fly(&["machine", "stop", &machine, "-a", "web"])?.ok()?;
        check_asker(host, &machine, "stop", "uid", &0.into())?;
        // flyctl's own variables, as far as they cannot mean Fly.
        let (base, token) =
            (format!("FLY_FLAPS_BASE_URL={}", address(host)?), format!("FLY_API_TOKEN={ci}"));
        let binary = std::env::var("PERCH_BIN")?;
        let args = ["-u", "PERCH_SOCKET", &base, &token, &binary, "fly", "apps", "list"];
        let list = host.run("env", &args)?;
        list.says(&["web"])?;
        list.ok().map(drop)
    });
}

#[test]
fn a_token_is_good_for_its_scope_only() {
    on_listening_host(|host| {
        private_app(host, "web", AWAKE)?;
        host.fly(&["apps", "create", "secret", "--org", "team"])?.ok()?;
        let machine = host.machines("web")?.pop().context("a Machine")?.id;
        check_refused(&far_fly(host, "perch_garbage", &["apps", "list"])?, "unknown")?;
        check_refused(&far_fly(host, "fm2_garbage", &["apps", "list"])?, "unknown")?;

        let team = made(host, &["--org", "team"])?;
        check_refused(&far_fly(host, &team, &["status", "-a", "web"])?, "Could not find App")?;
        let list = far_fly(host, &team, &["apps", "list"])?.ok()?;
        ensure!(!list.contains("web") && list.contains("secret"), "{list}");
        let create = ["apps", "create", "new", "--org", "personal"];
        check_refused(&far_fly(host, &team, &create)?, "organization personal not found")?;

        let reader = made(host, &["--app", "web", "--read-only"])?;
        far_fly(host, &reader, &["status", "-a", "web"])?.ok()?;
        let stop = ["machine", "stop", &machine, "-a", "web"];
        check_refused(&far_fly(host, &reader, &stop)?, "may only read")?;
        check_refused(&far_fly(host, &reader, &["status", "-a", "secret"])?, "Could not find App")?;
        ensure!(host.machines("web")?[0].state == "started", "it was stopped");
        check_refused(&token(host, &["create", "--app", "none"])?, "none")?;
        check_refused(&token(host, &["revoke", "none"])?, "no token none")
    });
}

#[test]
fn of_secrets_a_token_reads_names_only_and_of_another_app_nothing() {
    const VALUE: &str = "hunter2-of-the-token-test";
    on_listening_host(|host| {
        for app in ["web", "other"] {
            host.fly(&["apps", "create", app, "--org", "personal"])?.ok()?;
        }
        let pair = format!("KEY={VALUE}");
        host.fly(&["secrets", "set", &pair, "--stage", "-a", "web"])?.ok()?;
        let before = host.api("/v1/apps/web/secrets")?;

        // Who may only read sees names and digests, of what its token is good for.
        let readers =
            [made(host, &["--read-only"])?, made(host, &["--app", "web", "--read-only"])?];
        for reader in &readers {
            let list = far_fly(host, reader, &["secrets", "list", "--json", "-a", "web"])?.ok()?;
            ensure!(list.contains("KEY") && !list.contains(VALUE), "{list}");
            for change in [
                &["secrets", "set", "KEY=x", "--stage"][..],
                &["secrets", "set", "NEW=x"],
                &["secrets", "unset", "KEY", "--stage"],
                &["secrets", "unset", "KEY"],
            ] {
                let refused = far_fly(host, reader, &[change, &["-a", "web"]].concat())?;
                check_refused(&refused, "may only read")?;
            }
            let shown = far_ask(host, reader, "/v1/apps/web/secrets?show_secrets=true")?;
            ensure!(shown.starts_with("403 ") && !shown.contains(VALUE), "{shown}");
        }

        // A token of another app is told what it would be told of an app that is not there.
        let others = made(host, &["--app", "other"])?;
        for args in [
            &["secrets", "list"][..],
            &["secrets", "set", "KEY=x", "--stage"],
            &["secrets", "unset", "KEY", "--stage"],
        ] {
            let refused = far_fly(host, &others, &[args, &["-a", "web"]].concat())?;
            let nobodys = far_fly(host, &others, &[args, &["-a", "nobody"]].concat())?;
            check_refused(&refused, "Could not find App")?;
            ensure!(
                refused.stderr == nobodys.stderr.replace("nobody", "web"),
                "{refused}{nobodys}"
            );
        }
        for path in ["/v1/apps/web/secrets", "/v1/apps/web/secrets/KEY"] {
            let refused = far_ask(host, &others, path)?;
            ensure!(refused.starts_with("404 ") && !refused.contains("digest"), "{refused}");
        }
        far_fly(host, &others, &["secrets", "set", "OWN=x", "--stage", "-a", "other"])?.ok()?;
        ensure!(host.api("/v1/apps/web/secrets")? == before, "somebody changed them");
        Ok(())
    });
}

#[test]
fn volumes_that_are_named_go_with_their_app_for_a_token_of_that_app_or_its_organization() {
    on_listening_host(|host| {
        let sections = format!("{AWAKE}\n[mounts]\n  source = 'data'\n  destination = '/data'\n");
        for scope in [["--org", "personal"], ["--app", "web"]] {
            private_app(host, "web", &sections)?;
            host.fly(&["volumes", "create", "more", "-a", "web", "-s", "1", "-y"])?.ok()?;
            let volumes = host.api("/v1/apps/web/volumes")?;
            let id = |name: &str| {
                let mut named = volumes.as_array().into_iter().flatten();
                let volume = named.find(|it| it["name"] == name).context("no such volume")?;
                Ok::<_, anyhow::Error>(volume["id"].as_str().context("no id")?.to_owned())
            };
            let (data, more) = (id("data")?, id("more")?);
            let holder = made(host, &scope)?;
            let delete = |query: &str| {
                far_call(host, &holder, "DELETE", &format!("/v1/apps/web?volume={data}{query}"))
            };
            let refused = delete("&volume=vol_none")?;
            ensure!(refused.starts_with("404 ") && refused.contains("vol_none"), "{refused}");
            ensure!(host.states("web")? == ["started"], "it ended all the same");
            let done = delete("")?;
            ensure!(done.starts_with("202 "), "{done}");
            let kept = |id: &str| host.data_dir().join("volumes").join(id).exists();
            ensure!((kept(&data), kept(&more)) == (false, true), "data of {scope:?}");
            host.fly(&["volumes", "destroy", &more, "-a", "web", "-y"])?.ok()?;
        }
        Ok(())
    });
}

/// Status and body of what the API answers to the holder of a token.
fn far_ask(host: &Host, token: &str, path: &str) -> Result<String> {
    far_call(host, token, "GET", path)
}

fn far_call(host: &Host, token: &str, method: &str, path: &str) -> Result<String> {
    let (url, bearer) =
        (format!("{}{path}", address(host)?), format!("authorization: Bearer {token}"));
    let said = "%{stderr}%{http_code} ";
    host.run("curl", &["-sS", "-X", method, "-w", said, "-H", &bearer, &url])
        .map(|output| format!("{}{}", output.stderr, output.stdout))
}

#[test]
fn a_token_ends_by_time_by_revocation_and_with_its_app() {
    on_listening_host(|host| {
        private_app(host, "web", AWAKE)?;
        let short = made(host, &["--name", "short", "--expires", "1s"])?;
        wait_until("the token to end", SOON, || {
            let output = far_fly(host, &short, &["apps", "list"])?;
            Ok((!output.status.success()).then_some(output))
        })
        .and_then(|output| check_refused(&output, "expired"))?;
        token(host, &["list"])?.says(&["short", "(expired)"])?;

        let ci = made(host, &["--name", "ci"])?;
        let binary = std::env::var("PERCH_BIN")?;
        let mut following = host.command(&binary, &["fly", "logs", "-a", "web"]);
        following.env("PERCH_API", address(host)?).env("PERCH_TOKEN", &ci);
        let mut following = following.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        // It is in its long poll when it sleeps in the kernel with a connection; the end must come
        // in both cases.
        token(host, &["revoke", "ci"])?.ok()?;
        // Less than its polls last, of which the next would be refused.
        let limit = Duration::from_secs(9);
        let status = wait_until("the logs to end", limit, || Ok(following.try_wait()?))?;
        ensure!(!status.success(), "logs ended with {status}");
        check_refused(&far_fly(host, &ci, &["apps", "list"])?, "revoked")?;

        let own = made(host, &["--app", "web"])?;
        host.fly(&["apps", "destroy", "web", "--yes"])?.ok()?;
        host.fly(&["apps", "create", "web", "--org", "personal"])?.ok()?;
        check_refused(&far_fly(host, &own, &["status", "-a", "web"])?, "unknown")
    });
}

#[test]
fn tokens_outlive_the_server_and_their_secrets_are_nowhere() {
    on_listening_host(|host| {
        let ci = made(host, &["--name", "ci"])?;
        let gone = made(host, &["--name", "gone"])?;
        token(host, &["revoke", "gone"])?.ok()?;
        host.kill_server()?;
        host.start_server()?;
        far_fly(host, &ci, &["apps", "list"])?.ok()?;
        check_refused(&far_fly(host, &gone, &["apps", "list"])?, "revoked")?;
        host.stop_server()?;
        let secret = ci.rsplit('_').next().context("a secret")?;
        for file in [host.server_log(), host.data_dir().join("store.db")] {
            let bytes = fs::read(&file)?;
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            ensure!(!found, "{} holds the secret", file.display());
        }
        Ok(())
    });
}

#[test]
fn beyond_this_host_the_api_is_not_served_in_the_clear() {
    on(
        || Host::bare(Network::Open),
        |host| {
            let data = host.data_dir().to_string_lossy().into_owned();
            for address in ["0.0.0.0:4280", "[::]:4280", "192.0.2.1:4280"] {
                let output =
                    host.perch(&["server", "--data-dir", &data, "--listen-api", address])?;
                check_refused(&output, "TLS")?;
            }
            let output =
                host.perch(&["server", "--data-dir", &data, "--listen-api", "localhost"])?;
            ensure!(output.status.code() == Some(2), "not a wrong usage: {output}");
            Ok(())
        },
    );
}

#[test]
fn beyond_this_host_the_api_speaks_tls_with_the_operators_certificate() {
    on(
        || Host::bare(Network::Open),
        |host| {
            let file = |name: &str| host.dir().join(name).to_string_lossy().into_owned();
            let (certificate, key) = (file("certificate.pem"), file("key.pem"));
            let old = file("old.pem");
            fs::write(
                &certificate,
                include_str!("../../../../crates/api/tests/api/tls/certificate.pem"),
            )?;
            fs::write(&key, include_str!("../../../../crates/api/tests/api/tls/key.pem"))?;
            host.configure(&format!(
            "listen_api = \"0.0.0.0:0\"\napi_certificate = \"{certificate}\"\napi_key = \"{key}\"\n"
        ));
            fs::set_permissions(&key, PermissionsExt::from_mode(0o644))?;
            let refused = host.start_server().expect_err("everybody may read the key").to_string();
            ensure!(refused.contains("chmod o="), "not said why: {refused}");
            fs::set_permissions(&key, PermissionsExt::from_mode(0o600))?;
            host.start_server()?;
            let said = address(host)?;
            let port = said.strip_prefix("https://0.0.0.0:").with_context(|| said.clone())?;
            let ci = made(host, &[])?;
            let (api, token) =
                (format!("PERCH_API=https://127.0.0.1:{port}"), format!("PERCH_TOKEN={ci}"));
            let binary = std::env::var("PERCH_BIN")?;
            let trust = format!("SSL_CERT_FILE={certificate}");
            let list = [&api, &token, &binary, "fly", "apps", "list"];
            check_refused(&host.run("env", &list)?, "certificate")?;
            host.run("env", &[&[trust.as_str()], &list[..]].concat())?.ok()?;

            // A broken renewal changes nothing, and it is said.
            fs::write(&certificate, "broken")?;
            let pid = host.server_process()?.pid.to_string();
            ensure!(Command::new("kill").args(["-HUP", &pid]).status()?.success(), "no SIGHUP");
            wait_until("the refusal in the log", SOON, || {
                let log = fs::read_to_string(host.server_log())?;
                Ok(log.contains("goes on with its old certificate").then_some(()))
            })?;
            fs::write(&old, include_str!("../../../../crates/api/tests/api/tls/certificate.pem"))?;
            let trust = format!("SSL_CERT_FILE={old}");
            host.run("env", &[&[trust.as_str()], &list[..]].concat())?.ok()?;

            // A good one is found without a word.
            fs::write(&key, include_str!("../../../../crates/api/tests/api/tls/next-key.pem"))?;
            fs::write(&certificate, include_str!("../../../../crates/api/tests/api/tls/next.pem"))?;
            let trust = format!("SSL_CERT_FILE={certificate}");
            wait_until("the new certificate", SOON, || {
                let output = host.run("env", &[&[trust.as_str()], &list[..]].concat())?;
                Ok(output.status.success().then_some(()))
            })
        },
    );
}
