"""How things are asked: for each skill its phrasings, the last two of which training never uses."""

from __future__ import annotations

HELD_OUT = 2

PHRASES: dict[str, tuple[str, ...]] = {
    "what": (
        "What do you see?", "What do you see now?", "What is it?", "What is this?", "What is in the picture?",
        "What is visible right now?", "What is on the screen?", "What is there?", "Tell me what you see.",
        "What can you see?", "Which things do you see?", "Name what you see.", "What is happening?",
        "Describe what you see.", "Describe the picture.", "Describe the scene.", "What is shown?",
        "What are you looking at?", "What is in the video now?", "Name everything you see.",
        "What do you see right now?", "What is in the scene?",
    ),
    "colour": (
        "What color is the {shape}?", "What colour is the {shape}?", "Which color is the {shape}?",
        "Tell me the color of the {shape}.", "What is the color of the {shape}?", "What color does the {shape} have?",
        "Name the color of the {shape}.", "The {shape}, what color is it?", "Which color does the {shape} have?",
        "What is the colour of the {shape}?", "Which colour is the {shape}?", "Tell me which color the {shape} is.",
    ),
    "shape": (
        "What shape is the {colour} thing?", "Which shape is {colour}?", "What is the {colour} thing?",
        "What shape is {colour}?",
        "Tell me the shape of the {colour} thing.", "What is the shape of the {colour} thing?",
        "Which thing is {colour}?",
        "Name the {colour} shape.", "What {colour} shape do you see?", "What {colour} thing do you see?",
        "Name the {colour} thing.", "Which shape is the {colour} thing?",
    ),
    "where": (
        "Where is the {x}?", "Where do you see the {x}?", "In which part of the picture is the {x}?",
        "Where is the {x} now?",
        "Tell me where the {x} is.", "What is the position of the {x}?", "Where in the picture is the {x}?",
        "In what part of the picture is the {x}?", "Where can you see the {x}?", "The {x}, where is it?",
        "Where is the {x} right now?", "Tell me the position of the {x}.",
    ),
    "count": (
        "How many things do you see?", "How many things are there?", "How many objects do you see?",
        "How many objects are there?",
        "How many things are visible?", "Count the things.", "Count the objects you see.",
        "How many things are in the picture?",
        "How many things are there now?", "What number of things do you see?", "Tell me how many things you see.",
        "How many things can you see?", "How many objects are in the picture?", "Count the things you see.",
    ),
    "number": (
        "What number do you see?", "Which number do you see?", "What is the number?", "Read the number.",
        "What number is shown?",
        "Which number is it?", "What does the number say?", "Tell me the number.", "Which number is shown?",
        "What number is it?",
        "What number is there?", "Which number is there?", "Read me the number.",
    ),
    "word": (
        "What word do you see?", "Which word do you see?", "What does it say?", "Read the text.", "What is written?",
        "Read the word.", "What does the text say?", "What is the word?", "Tell me the word.", "What word is shown?",
        "What does the sign say?", "Read what is written.", "Which word is shown?", "Read me the word.",
        "What word is it?",
    ),
    "motion": (
        "Which way is the {x} moving?", "Where is the {x} moving?", "In which direction is the {x} moving?",
        "How is the {x} moving?",
        "Which way does the {x} move?", "Where is the {x} going?", "Which way is the {x} going?",
        "Is the {x} moving, and which way?",
        "What is the direction of the {x}?", "In what direction does the {x} move?",
        "In which direction does the {x} move?",
        "Which direction is the {x} moving?",
    ),
    "relation": (
        "Where is the {x} relative to the {y}?", "Where is the {x} compared to the {y}?",
        "On which side of the {y} is the {x}?",
        "Where is the {x}, seen from the {y}?", "Which side of the {y} is the {x} on?",
        "Where does the {x} stand relative to the {y}?",
        "Relative to the {y}, where is the {x}?", "How is the {x} placed relative to the {y}?",
        "Compared to the {y}, where is the {x}?", "Seen from the {y}, where is the {x}?",
    ),
    "is there": (
        "Is there {a_x}?", "Do you see {a_x}?", "Is there {a_x} now?", "Can you see {a_x}?", "Is {a_x} visible?",
        "Is {a_x} in the picture?", "Is there {a_x} in the picture?", "Do you see {a_x} right now?",
        "Is {a_x} there?",
        "Can you see {a_x} now?", "Do you see {a_x} now?", "Is there {a_x} right now?",
    ),
    "changed": (
        "Did anything change?", "Has anything changed?", "Did something just appear or leave?",
        "Did anything just change?",
        "Has something changed just now?", "Did something change?", "Did something just change?",
        "Has anything just changed?",
    ),
    "first": (
        "What was the first thing you saw?", "What did you see first?", "What came first?", "Which thing came first?",
        "What appeared first?", "What was first?", "Tell me the first thing you saw.",
        "Which thing did you see first?",
        "What was the first thing?", "Name the first thing you saw.", "Which thing appeared first?",
        "What was the first thing that appeared?",
    ),
    "last": (
        "What was the last thing that appeared?", "What appeared last?", "What came last?", "Which thing came last?",
        "What was the newest thing?", "What was the last thing to appear?", "Which thing appeared last?",
        "What was the last thing that came?",
        "What was the last new thing?", "Name the last thing that appeared.",
    ),
    "before": (
        "What came before the {x}?", "What did you see before the {x}?", "What appeared before the {x}?",
        "Which thing came before the {x}?",
        "What was there before the {x}?", "Before the {x}, what did you see?", "What was shown before the {x}?",
        "Before the {x}, what came?", "Which thing did you see before the {x}?", "Before the {x}, what appeared?",
    ),
    "after": (
        "What came after the {x}?", "What did you see after the {x}?", "What appeared after the {x}?",
        "Which thing came after the {x}?",
        "What was there after the {x}?", "After the {x}, what did you see?", "What was shown after the {x}?",
        "After the {x}, what came?", "Which thing did you see after the {x}?", "After the {x}, what appeared?",
    ),
    "colour was": (
        "What color was the {shape}?", "What colour was the {shape}?", "Which color was the {shape}?",
        "Tell me what color the {shape} was.",
        "What was the color of the {shape}?", "What color did the {shape} have?", "The {shape}, what color was it?",
        "Which color did the {shape} have?", "What was the colour of the {shape}?", "Which colour was the {shape}?",
    ),
    "number was": (
        "What number was shown?", "What number did you see?", "Which number did you see?",
        "Which number was shown?", "What was the number?",
        "Which number was it?", "What number was it?", "What number did you read?",
        "Tell me the number that was shown.", "Which number did you read?",
        "What was the number that you saw?", "What number was there?",
    ),
    "word was": (
        "What word was shown?", "What word did you see?", "Which word did you see?", "What was written?",
        "What did it say?",
        "What was the word?", "What did the text say?", "What did the sign say?", "Which word was shown?",
        "Which word was it?",
        "Tell me the word that was shown.", "What word was it?", "What word did you read?",
    ),
    "has appeared": (
        "Has {a_x} appeared?", "Have you seen {a_x}?", "Did you see {a_x}?", "Was there {a_x}?", "Did {a_x} appear?",
        "Has there been {a_x}?", "Have you seen {a_x} so far?", "Has {a_x} been there?",
        "Did {a_x} come by?", "Was {a_x} shown?",
        "Did you see {a_x} before?", "Has {a_x} appeared so far?", "Have you ever seen {a_x}?",
        "Did you ever see {a_x}?",
    ),
    "how many": (
        "How many different things have you seen?", "How many things have you seen so far?",
        "How many different things appeared?",
        "How many different things did you see?", "How many things appeared so far?",
        "How many different things have appeared?",
        "How many things did you see so far?", "How many things have appeared?",
        "How many different things were there?",
        "How many different things have you seen so far?", "How many things have you seen?",
        "How many different things did you see so far?",
    ),
    "where was": (
        "Where was the {x}?", "Where did you see the {x}?", "In which part of the picture was the {x}?",
        "Tell me where the {x} was.",
        "What was the position of the {x}?", "Where in the picture was the {x}?", "The {x}, where was it?",
        "Where did the {x} appear?",
        "In what part of the picture was the {x}?", "Where in the picture did you see the {x}?",
    ),
    "unknowable": (
        "What is my name?", "What will happen next?", "What time is it?", "How old are you?",
        "Who is the president?", "Where am I?",
        "What is the weather tomorrow?", "How much does it cost?", "Why is it there?", "Who made this?",
        "What does it smell like?",
        "What is behind the camera?", "What am I thinking?", "Who are you?", "Can you hear me?",
        "What day is it?", "How are you?",
        "What sound does it make?", "Where do I live?", "How heavy is it?", "What is the capital of France?",
        "Who is watching?",
        "What will you see next?", "What does the {x} cost?", "How old is the {x}?", "Who owns the {x}?",
        "Why is the {x} there?",
        "How heavy is the {x}?", "What is the name of the {x}?", "What does the {x} think?",
        "Where does the {x} come from?",
        "Who made the {x}?", "What will the {x} do next?", "What does the {x} smell like?",
        "How much is the {x}?", "Where will the {x} go?",
        "What is 2 plus 2?", "Tell me a joke.", "Write a poem.", "Open the door.", "Call me tomorrow.",
        "Hello!", "Who am I?",
        "How old am I?", "What is the time?", "Who will come next?", "What does the {x} weigh?",
    ),
}  # fmt: skip

PREFIXES = ("Please tell me: ", "Tell me, ", "Now, ", "Hey, ", "Look: ", "Quick question: ", "So, ")

UNKNOWABLE = "I can't know that"
NEVER_SEEN = "I have not seen that"
ABSENT = "I don't see that"
NOTHING = "nothing"
