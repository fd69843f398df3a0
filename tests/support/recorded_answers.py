"""Answers of OpenAI-compatible servers as they are sent: shortened where nothing is lost, words of the model replaced.

Sources: OpenAI's and OpenRouter's API documentation; public reports about vLLM (28266, 52640), llama.cpp (15780),
OpenHands (4131), gollm (33), copilot-api (164).
"""

from __future__ import annotations


def chat(content, finish_reason="stop", **message):
    """A chat completion of OpenAI's shape."""
    return {
        "id": "chatcmpl-8e0d5a86d87f",
        "object": "chat.completion",
        "created": 1755146543,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, "refusal": None, **message},
                "logprobs": None,
                "finish_reason": finish_reason,
            }
        ],
        "usage": {
            "prompt_tokens": 19,
            "completion_tokens": 10,
            "total_tokens": 29,
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
        "system_fingerprint": None,
    }


THINKING = "<think>Okay, the list of numbers, for example: [3, 17, 4]. Is it true or false? Let me"

NO_ANSWERS = {
    "vLLM, reasoning parser, cut": chat(None, "length", reasoning="Okay, the user", tool_calls=[]),
    "vLLM of 2025, the same": chat(None, "length", reasoning_content="Okay, the user"),
    "vLLM without a parser, cut": chat(THINKING, "length"),
    "OpenAI, all tokens thought": chat("", "length"),
    "OpenAI, refusal": chat(None, refusal="I'm sorry, I can't assist with that."),
    "Azure, filter": chat(None, "content_filter", content_filter_results={"hate": {"filtered": True}}),
    "Gemini, filter, no content": {"choices": [{"finish_reason": "content_filter", "index": 0, "message": {"role": "assistant"}}]},
    "empty": chat(""),
    "blank": chat("\n\n"),
    "LM Studio, prompt too long": chat("", "stop"),
}  # fmt: skip
"""Chat completions with status 200 that say nothing."""

FAILURES = {
    "OpenRouter, rate limit": {"error": {"message": "Rate limit exceeded", "code": 429}, "user_id": "user_1"},
    "OpenRouter, provider down": {
        "id": "gen-1",
        "choices": [
            {
                "error": {"message": "Provider returned error", "code": 502},
                "finish_reason": "error",
                "message": {"role": "assistant", "content": ""},
            }
        ],
    },
    "vLLM of 2024": {"object": "error", "message": "EngineCore encountered an issue", "code": 500},
    "text-generation-webui": {"error": "model not loaded"},
}
"""With status 200, too: the server says that it failed."""

MAX_TOKENS_REFUSED = {
    "error": {
        "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "type": "invalid_request_error",
        "param": "max_tokens",
        "code": "unsupported_parameter",
    }
}
TEMPERATURE_REFUSED = {
    "error": {
        "message": "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.",
        "type": "invalid_request_error",
        "param": "temperature",
        "code": "unsupported_value",
    }
}
WITHOUT_PARAMETER = {
    "error": {"message": MAX_TOKENS_REFUSED["error"]["message"], "code": "invalid_request_body"}
}
TOO_LONG = {
    "error": {
        "code": 400,
        "message": "the request exceeds the available context size. try increasing the context size or enable context shift",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 1407,
        "n_ctx": 256,
    }
}
UNPROCESSABLE = {
    "detail": [{"loc": ["body", "messages"], "msg": "field required", "type": "value_error.missing"}]
}
PARTS = chat(
    [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": "True"}]
)
"""Mistral's reasoning models."""
