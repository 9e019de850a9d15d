use std::collections::HashMap;

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Goldens {
    special_tokens: Vec<(String, String)>,
    templates: HashMap<String, String>,
    conversations: HashMap<String, Vec<GoldenMessage>>,
    #[serde(rename = "goldens")]
    cases: Vec<Golden>,
}

#[derive(Deserialize)]
struct Golden {
    template: String,
    conversation: String,
    add_generation_prompt: bool,
    rendered: Option<String>,
    refused: Option<String>,
}

#[derive(Clone, Deserialize)]
struct GoldenMessage {
    role: String,
    content: String,
    name: Option<String>,
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let all: Goldens =
        serde_json::from_str(include_str!("../../tests/goldens/templates.json")).unwrap();
    assert!(all.cases.len() > 100, "{}", all.cases.len());
    for golden in all.cases {
        let case = format!("{}, {}", golden.template, golden.conversation);
        let template =
            ChatTemplate::new(&all.templates[&golden.template], all.special_tokens.clone());
        let messages: Vec<_> = all.conversations[&golden.conversation]
            .iter()
            .cloned()
            .map(|m| TemplateMessage {
                role: m.role,
                content: m.content,
                name: m.name,
            })
            .collect();
        match template
            .unwrap()
            .render(&messages, golden.add_generation_prompt)
        {
            Ok(text) => assert_eq!(Some(text), golden.rendered, "{case}"),
            Err(TemplateError::Refused(why)) => assert_eq!(Some(why), golden.refused, "{case}"),
            Err(error) => panic!("{case}: {error}"),
        }
    }
}

fn user(content: &str) -> Vec<TemplateMessage> {
    vec![TemplateMessage {
        role: "user".into(),
        content: content.into(),
        name: None,
    }]
}

#[test]
fn a_template_without_end_is_stopped() {
    let source = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
    let template = ChatTemplate::new(source, vec![]).unwrap();
    assert!(matches!(
        template.render(&user("a"), true),
        Err(TemplateError::TooMuchWork)
    ));
    let template = ChatTemplate::new("{{ 'x' * 1000000000000 }}", vec![]).unwrap();
    assert!(template.render(&user("a"), true).is_err());
}

#[test]
fn a_broken_template_is_refused_and_a_failing_one_is_an_error() {
    assert!(matches!(
        ChatTemplate::new("{% if %}", vec![]),
        Err(TemplateError::Syntax(_))
    ));
    let template = ChatTemplate::new("{{ messages[0].content.nope() }}", vec![]).unwrap();
    assert!(matches!(
        template.render(&user("a"), true),
        Err(TemplateError::Failed(_))
    ));
    let template = ChatTemplate::new("{{ missing.field }}", vec![]).unwrap();
    assert!(matches!(
        template.render(&user("a"), true),
        Err(TemplateError::Failed(_))
    ));
}

#[test]
fn the_time_is_formatted_as_asked() {
    let template = ChatTemplate::new("{{ strftime_now('%d %b %Y') }}", vec![]).unwrap();
    let text = template.render(&user("a"), true).unwrap();
    let parts: Vec<_> = text.split(' ').collect();
    assert_eq!(parts.len(), 3, "{text}");
    assert!(parts[2].parse::<u16>().unwrap() >= 2024, "{text}");
}

#[test]
fn a_message_is_never_read_as_a_template() {
    let template = ChatTemplate::new("{{ messages[0].content }}", vec![]).unwrap();
    let evil = "{{ raise_exception('x') }}{% for %}";
    assert_eq!(template.render(&user(evil), true).unwrap(), evil);
}

#[derive(Deserialize)]
struct Methods {
    names: serde_json::Value,
    cases: Vec<Method>,
}

#[derive(Deserialize)]
struct Method {
    expression: String,
    /// None where Jinja2 fails.
    shown: Option<String>,
}

#[test]
fn methods_and_filters_do_what_python_and_jinja_do() {
    let all: Methods =
        serde_json::from_str(include_str!("../../tests/goldens/methods.json")).unwrap();
    assert!(all.cases.len() > 200, "{}", all.cases.len());
    let mut wrong = Vec::new();
    for Method { expression, shown } in all.cases {
        let template = ChatTemplate::new(&format!("{{{{ {expression} }}}}"), vec![]).unwrap();
        let conversation = Conversation {
            variables: all.names.as_object().unwrap().clone(),
            ..Conversation::default()
        };
        let rendered = template.render_conversation(&conversation);
        if rendered.as_ref().ok() != shown.as_ref() {
            wrong.push(format!("{expression}: {rendered:?} instead of {shown:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[track_caller]
fn unusable(source: &str, why: &str) {
    let probed = ChatTemplate::new(source, vec![]).unwrap().probe();
    match probed {
        Err(TemplateError::Unusable(told)) => assert!(told.contains(why), "{told}"),
        other => panic!("{source}: {other:?}"),
    }
}

#[test]
fn a_template_that_cannot_run_is_found_before_the_first_request() {
    unusable("{{ messages[0].content.nope() }}", "unknown method");
    unusable("{{ nope(messages) }}", "unknown function");
    unusable(
        "{% if tools %}{{ messages|nope }}{% endif %}",
        "no filter named nope",
    );
    unusable(
        "{% if false %}{{ 1 is nope }}{% endif %}",
        "no test named nope",
    );
    unusable("{{ missing.field }}", "undefined");
    let later =
        "{% for m in messages %}{% if m.role == 'tool' %}{{ m.nope() }}{% endif %}{% endfor %}";
    unusable(later, "unknown method");
    unusable(
        "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
        "too long",
    );
}

#[test]
fn a_template_that_refuses_some_conversations_is_used() {
    for source in [
        "{{ raise_exception('never') }}",
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x",
        "{% if messages[1] %}{{ messages[1].missing.field }}{% endif %}x",
        "{% if strftime_now is defined %}{{ strftime_now('%d') }}{% endif %}",
        "{% macro m(x) %}{{ x|trim }}{% endmacro %}{{ m(messages[0].content) }}",
        "{{ messages[0]['content'] | trim | upper }}{{ namespace(a=1).a }}",
    ] {
        ChatTemplate::new(source, vec![]).unwrap().probe().unwrap();
    }
}

fn said(template: &str, content: &str) -> Option<(String, Vec<String>)> {
    let template = ChatTemplate::new(template, vec![]).unwrap();
    let conversation = Conversation {
        messages: vec![serde_json::json!({"role": "assistant", "content": content})],
        ..Conversation::default()
    };
    let MarkedPrompt { text, spans } = template.render_marked(&conversation).unwrap()?;
    let spans = spans.into_iter().map(|span| text[span].to_owned());
    let spans = spans.collect();
    Some((text, spans))
}

#[test]
fn what_a_template_marks_is_found_and_its_white_space_is_as_without() {
    let source =
        "<a>\n  {%- generation %}\n  {{ messages[0].content }}\n{% endgeneration -%}\n <b>";
    let plain = ChatTemplate::new(source, vec![]).unwrap();
    let plain = plain.render(&user("héy"), false).unwrap();
    let (text, spans) = said(source, "héy").unwrap();
    assert_eq!((text, spans), (plain, vec!["  héy\n".to_owned()]));
    // What it is marked with may stand in what was said.
    let (_, spans) = said(source, "a\u{fdd1}\u{fdd1}b").unwrap();
    assert_eq!(spans, ["  a\u{fdd1}\u{fdd1}b\n"]);
    assert_eq!(said("{{ messages[0].content }}", "a"), None);
    let cut = "{% set x %}{% generation %}{{ messages[0].content }}{% endgeneration %}{% endset %}\
        {{ x[1:] }}";
    assert_eq!(said(cut, "abc"), None, "a mark was lost");
}

#[test]
fn the_day_may_be_said() {
    let template = ChatTemplate::new("{{ strftime_now('%d %b %Y') }}", vec![]).unwrap();
    let on = |date: &str| {
        let mut conversation = Conversation::default();
        let variables = &mut conversation.variables;
        variables.insert(ChatTemplate::DATE.to_owned(), date.into());
        template.render_conversation(&conversation)
    };
    assert_eq!(on("2024-02-29").unwrap(), "29 Feb 2024");
    assert!(on("yesterday").is_err());
}
