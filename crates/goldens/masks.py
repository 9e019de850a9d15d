"""Which characters of a chat the assistant wrote, as transformers finds them by generation marks.

`data/training/masks.json` holds templates of real models, most as TRL has them, each with its twin that
has marks, and for some chats the text of either, and the spans of the twin's: pairs of characters
(code points, not bytes) in order, the end exclusive. That is what transformers makes
`return_assistant_tokens_mask` of. Where both texts are equal, spans that are derived without marks
can be compared; where they are not, `text` is None. `prompts` is what the template prompts with for
each of the assistant's turns.
"""

import json
import pathlib

import trl
from transformers.utils.chat_template_utils import render_jinja_template

TEMPLATES = {
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
    "qwen2_5": ("", "<|im_end|>"),
    "qwen3": ("", "<|im_end|>"),
    "qwen3_instruct_2507": ("", "<|im_end|>"),
    "gemma": ("<bos>", "<eos>"),
    "gemma3": ("<bos>", "<eos>"),
    "phi3": ("<s>", "<|endoftext|>"),
    "phi3_5": ("<s>", "<|endoftext|>"),
    "glm4moe": ("", "<|endoftext|>"),
    "deepseekv3": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "cohere": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
}
# What TRL has no templates of.
OTHERS = {"smollm2": ("<|im_start|>", "<|im_end|>"), "mistral_nemo": ("<s>", "</s>")}
# SmolLM2's own, and the same with marks; TRL has neither.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] +"
    " '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n'"
    " }}{% endif %}"
)
SMOLLM2_MARKED = SMOLLM2.replace(
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}",
    "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' + '\n' }}{% endgeneration %}{% else %}"
    "{{ message['content'] + '<|im_end|>' + '\n' }}{% endif %}",
)

# Mistral Nemo's own, and the same with marks; TRL has neither. It writes a system message only before a
# user's that is the last of all: in prompts, and in nothing that ends with an answer.
MISTRAL = pathlib.Path(__file__).parent.parent / "training/tests/templates/mistral_nemo.jinja"
MISTRAL_ANSWER = '{{- message["content"] + eos_token}}'
MISTRAL_MARKED_ANSWER = "{% generation %}" + MISTRAL_ANSWER + "{% endgeneration %}"


def turn(role, content, **more):
    return {"role": role, "content": content} | more


CHATS = {
    "one": [turn("user", "What is 2 + 2?"), turn("assistant", "It is 4.")],
    "system": [
        turn("system", "Answer in one word."),
        turn("user", "The capital of France?"),
        turn("assistant", "Paris"),
        turn("user", "Of Japan?"),
        turn("assistant", "Tokyo"),
    ],
    # The answer is part of the question, and of the next; characters of several bytes, of several
    # code points, and blanks at the ends.
    "repeated": [
        turn("user", "Say 😀 日本 é."),
        turn("assistant", "😀 日本 é"),
        turn("user", "😀 日本 é"),
        turn("assistant", "  Ελληνικά 😀\n\n  two lines \n"),
        turn("user", "user\nassistant"),
        turn("assistant", "assistant"),
    ],
    "thoughts": [
        turn("user", "2 + 2?"),
        turn("assistant", "<think>\nTwo and two.\n</think>\n\n4"),
        turn("user", "And 3 + 3?"),
        turn("assistant", "<think>\nThree and three.\n</think>\n\n6"),
    ],
    "tools": [
        turn("user", "Weather in Oslo?"),
        turn(
            "assistant",
            "",
            tool_calls=[
                {
                    "type": "function",
                    "function": {"name": "weather", "arguments": {"city": "Oslo", "days": 1}},
                }
            ],
        ),
        turn("tool", "-3"),
        turn("assistant", "It is -3 degrees."),
    ],
}
# The only ones that take them: others fail, or leave the call out.
TOOLS = ["qwen2_5", "qwen3", "qwen3_instruct_2507", "glm4moe"]


def make(data):
    folder = pathlib.Path(trl.__file__).parent / "chat_templates"
    sources = {
        name: ((folder / f"{name}.jinja").read_text(), (folder / f"{name}_training.jinja").read_text())
        for name in TEMPLATES
    }
    sources["smollm2"] = (SMOLLM2, SMOLLM2_MARKED)
    mistral = MISTRAL.read_text()
    if mistral.count(MISTRAL_ANSWER) != 1:
        raise SystemExit(f"{MISTRAL}: its answers are written otherwise than {MISTRAL_ANSWER}")
    sources["mistral_nemo"] = (mistral, mistral.replace(MISTRAL_ANSWER, MISTRAL_MARKED_ANSWER))
    result = []
    for name, (template, marked) in sources.items():
        bos, eos = (TEMPLATES | OTHERS)[name]
        result.append(
            {
                "name": name,
                "template": template,
                "marked": marked,
                "bos_token": bos,
                "eos_token": eos,
                "chats": chats(name, template, marked, bos_token=bos, eos_token=eos),
            }
        )
    path = data / "training" / "masks.json"
    path.write_text(json.dumps(result, separators=(",", ":"), ensure_ascii=False) + "\n")
    print(path.name, path.stat().st_size, "bytes")


def chats(name, template, marked, **tokens):
    result = []
    for chat, messages in CHATS.items():
        if chat == "tools" and name not in TOOLS:
            continue
        try:
            [plain], _ = render_jinja_template([messages], chat_template=template, **tokens)
        except Exception as error:
            print(f"{name}/{chat}: {error}")
            continue
        [text], [spans] = render_jinja_template(
            [messages], chat_template=marked, return_assistant_tokens_mask=True, **tokens
        )
        spans = [list(span) for span in spans]
        if not spans or not all(0 <= a < b <= len(text) for a, b in spans):
            raise SystemExit(f"{name}/{chat}: the spans {spans} are none of {len(text)} characters")
        if plain != text:
            print(f"{name}/{chat}: the twin's text is another")
        result.append(
            {
                "name": chat,
                "messages": messages,
                "prompts": [
                    render_jinja_template(
                        [messages[:turn]], chat_template=template, add_generation_prompt=True, **tokens
                    )[0][0]
                    for turn, message in enumerate(messages)
                    if message["role"] == "assistant"
                ],
                "text": plain if plain == text else None,
                "marked_text": text,
                "spans": spans,
            }
        )
    return result
