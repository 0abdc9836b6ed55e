//! Pages of the server, embedded in the binary.
//!
//! **For** what a person sees in a browser: now the status page at `/`; the web UI and Grafana's files come here too.
//! **Not for** data: pages are given what they show.

const STATUS: &str = include_str!("../web/status.html");

/// The status page. `facts`: name and value, as plain text.
pub fn status_page(version: &str, url: &str, facts: &[(String, String)]) -> String {
    let rows: String = facts
        .iter()
        .map(|(name, value)| format!("<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n", escape(name), escape(value)))
        .collect();
    STATUS.replace("{version}", &escape(version)).replace("{url}", &escape(url)).replace("{rows}", &rows)
}

/// Text that may stand in HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_cannot_become_markup() {
        let page = status_page("1", "http://h", &[("Stores in".into(), "/a<script>".into())]);
        assert!(page.contains("/a&lt;script&gt;") && !page.contains("<script>"));
        assert!(page.contains("http://h/loki/api/v1/query_range"));
        for left in ["{version}", "{url}", "{rows}"] {
            assert!(!page.contains(left), "{left} was not filled in");
        }
    }
}
