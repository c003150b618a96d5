//! `proxy`: flyctl-cli 3.8. What goes through it is the host tests' matter.

use crate::fixture::Fixture;

#[test]
fn it_says_where_it_listens_and_ends_well_with_ctrl_c() {
    let fixture = Fixture::deployed();
    for args in [&["proxy", "0:80"][..], &["proxy", "0:80", "-q"]] {
        let run = fixture.fly_until_printed("\n", args);
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{}", run.out);
        let line = run.out.strip_prefix("Proxying localhost:").expect("the line");
        assert!(line.ends_with(" to remote [web.internal]:80\n"), "{line}");
    }
}

#[test]
fn bad_input_says_what_to_write() {
    let fixture = Fixture::deployed();
    let error = |args: &[&str]| {
        let run = fixture.fly(args);
        assert_eq!((run.code, run.out.contains("Proxying")), (1, false), "{args:?}");
        run.err
    };
    for (args, received) in [(&["proxy"][..], 0), (&["proxy", "1", "b", "c"], 3)] {
        let wanted = format!("Error: accepts between 1 and 2 arg(s), received {received}\n");
        assert!(error(args).starts_with(&wanted), "{}", error(args));
    }
    assert!(
        error(&["proxy", "http:80"]).contains("'http:80' does not name two ports\nWrite LOCAL:")
    );
    assert!(error(&["proxy", "1:70000"]).contains("'1:70000' does not name two ports"));
    assert!(error(&["proxy", "0:80", "-b", "here"]).contains("'here' is not an IP address"));
    assert!(
        error(&["proxy", "0:80", "-s"]).contains("selecting instance: prompt: non interactive")
    );
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("it has one").port();
    let text = error(&["proxy", &format!("{port}:80")]);
    assert!(text.contains(&format!("could not listen on 127.0.0.1:{port}")), "{text}");
    assert!(text.contains("Use another local port"), "{text}");
    let socket = fixture.path("api.sock").display().to_string();
    let text = error(&["proxy", &format!("{socket}:80")]);
    assert!(text.contains(&format!("could not listen on {socket}")), "{text}");
}

#[test]
fn without_an_app_a_host_is_needed() {
    let fixture = Fixture::new();
    let run = fixture.fly(&["proxy", "0:80", "--select"]);
    assert_eq!(run.err, "Error: --app required when --select flag provided\n");
    let run = fixture.fly(&["proxy", "0:80"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("Error: neither an app nor a host is named\n"), "{}", run.err);
}
