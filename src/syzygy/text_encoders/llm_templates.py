"""Instructions around a prompt that published models give to their language models, by name.

An instruction makes a model that was tuned to follow instructions attend to what an image shows. LI-DiT (arXiv 2406.11831) reports that such
a model, used as an encoder without one, follows prompts worse than expected; Sana (arXiv 2410.10629) designed its long instruction to improve
the alignment of image and text. The texts are those of the pipelines in diffusers, character for character.
"""

TEMPLATES = {
    "qwen-image": "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n",
    "lumina-2": "You are an assistant designed to generate superior images with the superior degree of image-text alignment based on textual "
    "prompts or user prompts. <Prompt Start> {text}",
    "sana": "Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual descriptions suitable for image generation. "
    "Evaluate the level of detail in the user prompt:\n"
    "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, and spatial relationships to create vivid "
    "and concrete scenes.\n"
    "- If the prompt is already detailed, refine and enhance the existing details slightly without overcomplicating.\n"
    "Here are examples of how to transform or refine prompts:\n"
    "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round shape, sleeping peacefully on a warm sunny "
    "windowsill, surrounded by pots of blooming red flowers.\n"
    "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring glowing street lamps, a diverse crowd of "
    "people in colorful clothing, and a double-decker bus passing by towering glass skyscrapers.\n"
    "Please generate only the enhanced description for the prompt below and avoid including any additional commentary or evaluations:\n"
    "User Prompt: {text}",
}
"""qwen-image (arXiv 2508.02324): models of ChatML's format, such as Qwen and SmolLM2. lumina-2 (arXiv 2503.21758) and sana: Gemma 2, and any
other model, as they hold no control token."""
