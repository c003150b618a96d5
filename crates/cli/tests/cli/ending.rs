//! What a deploy says about how its app is reached, and about ports at which nobody answers.

use crate::fixture::{Fixture, Run, oci_layout};

/// Deploys a private app with these services.
fn deployed(services: &str) -> Run {
    let fixture = Fixture::new();
    oci_layout(&fixture.path("img"));
    let text = format!("app = 'web'\n[build]\n  image = 'oci:img'\n{services}");
    std::fs::write(fixture.path("fly.toml"), text).expect("it can be written");
    let run = fixture.fly(&["launch", "--copy-config", "--name", "web", "--flycast", "-y"]);
    assert_eq!(run.code, 0, "{}\n{}", run.out, run.err);
    run
}

/// A TCP service whose port 8080 inside is published at these ports.
fn service(ports: &[(u16, &str)]) -> String {
    let mut text = "[[services]]\n  protocol = 'tcp'\n  internal_port = 8080\n".to_owned();
    for (port, handlers) in ports {
        text += &format!("  [[services.ports]]\n    port = {port}\n    handlers = [{handlers}]\n");
    }
    text
}

#[test]
fn a_raw_tcp_service_is_not_said_to_speak_http() {
    let run = deployed(&service(&[(9000, "")]));
    assert!(run.out.contains("private network under web.flycast:9000\n"), "{}", run.out);
    assert!(run.out.contains("From elsewhere: fly proxy 8080:9000 -a web\n"), "{}", run.out);
    assert!(!run.out.contains("http://"), "{}", run.out);
    assert!(!run.out.contains("curl"), "{}", run.out);
}

#[test]
fn of_raw_and_http_ports_the_http_one_is_shown() {
    let run = deployed(&service(&[(5432, ""), (8000, "'http'")]));
    assert!(run.out.contains("under http://web.flycast:8000\n"), "{}", run.out);
}

#[test]
fn ports_with_handlers_that_nobody_serves_are_named_and_left_out_of_the_ending() {
    let run = deployed(&service(&[(443, "'tls', 'http'"), (8000, "'http'")]));
    let note = "NOTE: port 443 is not served: handlers tls, http are not there yet; \
                connections there are reset\n";
    assert!(run.out.contains(note), "{}", run.out);
    assert!(run.out.contains("under http://web.flycast:8000\n"), "{}", run.out);
    for handler in ["'pg_tls'", "'tls'"] {
        let run = deployed(&service(&[(80, handler)]));
        let word = handler.trim_matches('\'');
        let note = format!("NOTE: port 80 is not served: handler {word} is not there yet;");
        assert!(run.out.contains(&note), "{}", run.out);
        assert!(!run.out.contains("web.flycast"), "nobody answers there: {}", run.out);
        assert!(
            run.out.contains("has no port that is served; reach its Machines at\nweb.internal")
        );
    }
}

#[test]
fn the_https_that_an_http_service_implies_is_not_worth_a_note() {
    let run = deployed("[http_service]\n  internal_port = 8080\n");
    assert!(!run.out.contains("is not served"), "{}", run.out);
    assert!(run.out.contains("under http://web.flycast\n"), "{}", run.out);
}
