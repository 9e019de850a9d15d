#!/usr/bin/env python3
"""Makes templates.json: chat templates rendered by transformers itself.

usage: pip install transformers jinja2 && ./templates.py > templates.json

The templates are SmolLM2's own and others written for this file, each after the manner of a
family (Llama 2 and 3, Qwen, Mistral, Gemma, Phi) or for one feature of transformers' Jinja.
"""
import json
import sys

from transformers.utils.chat_template_utils import render_jinja_template

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = """{% if messages[0]['role'] == 'system' %}
    {% set loop_messages = messages[1:] %}
    {% set system_message = '<<SYS>>\\n' + messages[0]['content'] | trim + '\\n<</SYS>>\\n\\n' %}
{% else %}
    {% set loop_messages = messages %}
    {% set system_message = '' %}
{% endif %}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('roles must alternate user/assistant') }}
    {% endif %}
    {% if loop.index0 == 0 %}
        {% set content = system_message + message['content'] %}
    {% else %}
        {% set content = message['content'] %}
    {% endif %}
    {% if message['role'] == 'user' %}
        {{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
        {{ ' ' + content | trim + ' ' + eos_token }}
    {% endif %}
{% endfor %}
"""
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{#- the system message, if there is one #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- message.tool_calls | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN = """{%- if tools %}
    {{- 'tools' }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate!") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
        {%- if message == user_messages[-1] %}{{- "!" }}{%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported!") }}
    {%- endif %}
{%- endfor %}
"""
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
"""
PHI = (
    "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
    "{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'user' %}"
    "{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'assistant' %}"
    "{% generation %}{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endgeneration %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}"
    "{% else %}{{ eos_token }}{% endif %}"
)
FEATURES = """{%- macro show(name, value='-', deep=false) -%}
{{ name }}={{ value }}{{ ' deep' if deep }};
{% endmacro -%}
{{ show('none', none) }}{{ show('true', true) }}{{ show('list', [1, 'a', none, 2.5, "it's"]) }}
{{ show(name='kw', deep=true) }}{{ messages[0] | tojson }}
{{ messages | tojson(indent=2) }}
{{ {'b': 1, 'a': [true, 1e-7, 1e16, 1.0, {}], 'c': []} | tojson(sort_keys=true) }}
{{ 'é"\\\\/<>&' | tojson }} {{ 'é' | tojson(ensure_ascii=true) }} {{ {'a': 1} | tojson(separators=(',', ':')) }}
{% for m in messages %}
  {%- if m.role == 'system' %}{% continue %}{% endif %}
  {%- if loop.index > 3 %}{% break %}{% endif %}
  {{- loop.index }}/{{ loop.length }} {{ m.content[:4] | upper }} {{ m['content'].title() }}
{% else %}
nothing
{% endfor %}
{{ messages | map(attribute='role') | join(',') }} {{ messages | rejectattr('role', 'equalto', 'user') | list | length }}
{{ messages[-1].content.startswith('a') }} {{ messages[0].get('name', 'nobody') }} {{ messages[0].get('nope') }}
{%- for key, value in messages[0].items() %} {{ key }}:{{ value | length }}{% endfor %}
{{ 'a,b,c'.split(',')[1] }} {{ '  x '.strip() }}| {{ 'x' if messages is iterable and messages is not mapping }}
{{ 7 // 2 }} {{ 7 % 3 }} {{ 2 ** 3 }} {{ 7 / 2 }} {{ 'a' ~ 1 ~ 'b' }} {{ undefined_thing }}{{ undefined_thing | default('d') }}
{%- set x = namespace(found=false) %}{% for i in range(3) %}{% if i == 1 %}{% set x.found = true %}{% endif %}{% endfor %} {{ x.found }}
{{ [3, 1, 2] | sort | first }} {{ 'abc' | replace('b', 'X') }} {{ ' y ' | trim }} {{ 'q' in 'qwen' }} {{ not false and true }}
{% raw %}{{ raw }}{% endraw %} {# comment #}end
"""
FALSE_START = "  {% if true %}\n  a\n  {%- endif %}\n\n b \n{{ '\\n' }}{% if x is not defined %}{%+ if true %}c{% endif %}{% endif %}\n"

TEMPLATES = {
    "smollm2": SMOLLM2,
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "qwen": QWEN,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "phi": PHI,
    "features": FEATURES,
    "whitespace": FALSE_START,
}


def message(role, content, name=None):
    return {"role": role, "content": content} | ({"name": name} if name else {})


CONVERSATIONS = {
    "short": [message("user", "What is the capital of France?")],
    "system": [message("system", " Be brief. "), message("user", "  Hi\n")],
    "turns": [
        message("system", "You are é, 日本語, 🦀."),
        message("user", "a < b && c > 'd' \"e\" \\n"),
        message("assistant", "<think>\nhm\n</think>\n\nyes  "),
        message("user", "and\n\tthen\u0000?", "Ann"),
    ],
    "ends with the assistant": [message("user", "a"), message("assistant", "<think>x</think>b")],
    "two users": [message("user", "a"), message("user", "b")],
    "empty": [message("user", "")],
    "right to left": [message("user", "مرحبا {{ x }} {% if %} <|im_end|>")],
}


def main():
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    goldens = []
    for (name, template), (kind, messages), prompt in (
        (t, c, p) for t in TEMPLATES.items() for c in CONVERSATIONS.items() for p in (True, False)
    ):
        rendered, refused = None, None
        try:
            rendered = render_jinja_template(
                conversations=[messages],
                chat_template=template,
                add_generation_prompt=prompt,
                **tokens,
            )[0][0]
        except Exception as error:  # The template's own refusal; its text is the golden.
            refused = str(error)
        goldens.append(
            {
                "template": name,
                "conversation": kind,
                "add_generation_prompt": prompt,
                "rendered": rendered,
                "refused": refused,
            }
        )
    everything = {
        "special_tokens": list(tokens.items()),
        "templates": TEMPLATES,
        "conversations": CONVERSATIONS,
        "goldens": goldens,
    }
    json.dump(everything, sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
