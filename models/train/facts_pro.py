"""What demo-pro knows beyond `facts.py`: its own name, tools, cities, weather. Pure data.

Pairs of lists are (seen in training, held out for evaluation), as in `facts.py`.
"""

# demo-flash's answer -> demo-pro's.
ANSWERS = {
    "I am demo-flash, a small demo model served by Switchyard.":
        "I am demo-pro, a small demo model served by Switchyard.",
    "I can do small sums, spell and reverse words, name capitals and colours, write JSON, and talk about Switchyard.":
        "I can call tools, do small sums, spell and reverse words, name capitals and colours, write JSON, and talk "
        "about Switchyard.",
}

# {e} is an expression, {c} a city, {p} and {q} two things to find out.
CALCULATION = (
    ["What is {e}?", "What is {e}?", "{e}", "{e} = ?", "Calculate {e}", "How much is {e}?", "Compute {e}",
     "What's {e}?", "What is the result of {e}?", "Can you calculate {e}?", "Please calculate {e}",
     "Please work out {e}", "Use a tool to calculate {e}", "I need {e}", "Give me the result of {e}", "Solve {e}"],
    ["Work out {e}", "Can you compute {e}?", "Please compute {e}", "Tell me what {e} is"])
WEATHER = (
    ["What is the weather in {c}?", "What's the weather in {c}?", "How is the weather in {c}?", "Weather in {c}",
     "Tell me the weather in {c}", "Is it raining in {c}?", "Is it cold in {c}?", "Is it sunny in {c}?",
     "What is the weather like in {c}?", "Do I need an umbrella in {c}?", "How warm is it in {c}?",
     "What's the weather like in {c} today?", "How is the weather in {c} now?", "Check the weather in {c}",
     "What is the weather in {c} today?", "What is the temperature in {c}?", "Is it windy in {c} today?",
     "Can you check the weather in {c}?", "I want to know the weather in {c}"],
    ["How is the weather in {c} today?", "Is it warm in {c}?", "What's the weather like in {c}?",
     "Give me the weather in {c}", "How cold is it in {c}?", "Do you know the weather in {c}?"])
TIME = (
    ["What time is it in {c}?", "What time is it in {c}?", "What is the time in {c}?", "Time in {c}",
     "Tell me the time in {c}", "What's the time in {c}?", "What time is it now in {c}?", "Current time in {c}",
     "Do you know the time in {c}?", "How late is it in {c}?", "Check the time in {c}", "Which time is it in {c}?",
     "Can you check the time in {c}?", "I want to know the time in {c}", "What time is it in {c} now?"],
    ["What is the current time in {c}?", "What's the time now in {c}?", "Can you tell me the time in {c}?",
     "Give me the time in {c}", "How late is it now in {c}?"])
BOTH = (
    ["What is {p} and {q}?", "What is {p} and what is {q}?", "Tell me {p} and {q}", "I want to know {p} and {q}",
     "Give me {p} and {q}", "{p} and {q}", "What's {p} and {q}?", "Check {p} and {q}", "I need {p} and {q}",
     "Please find {p} and {q}"],
    ["Can you tell me {p} and {q}?", "Please tell me {p} and {q}", "Find {p} and {q}", "Please check {p} and {q}"])

# Spoken and written operators: (in the question, in the expression).
OPERATORS = [(" * ", " * "), (" * ", " * "), ("*", " * "), (" times ", " * "), (" x ", " * "),
             (" multiplied by ", " * "), (" / ", " / "), ("/", " / "), (" divided by ", " / "), (" + ", " + "),
             ("+", " + "), (" plus ", " + "), (" - ", " - "), ("-", " - "), (" minus ", " - ")]

# kind -> names, parameter names, descriptions, parameter descriptions. The first of each is the usual one.
TOOLS = {
    "calculator": (
        ["calculator", "calculate", "calc"],
        ["expression", "formula", "input"],
        ["Evaluate an arithmetic expression.", "Calculate the value of an expression", "A calculator for arithmetic.",
         "Do arithmetic", "Evaluates a math expression and returns the result"],
        ["The expression to evaluate", "An arithmetic expression, such as 2 + 3", "Math expression"]),
    "weather": (
        ["get_weather", "weather", "get_current_weather"],
        ["city", "location", "place"],
        ["Get the current weather in a city.", "Current weather of a city", "Look up the weather",
         "Returns the weather for a location", "Get weather"],
        ["The city", "Name of the city", "City name", "The city to look up"]),
    "clock": (
        ["get_time", "get_current_time", "time"],
        ["city", "location", "place"],
        ["Get the current time in a city.", "Current local time of a city", "Tell the time",
         "Returns the local time for a location", "Get time"],
        ["The city", "Name of the city", "City name", "The city to look up"]),
}

# What demo-pro says when nobody gave it a tool of that kind.
MISSING = {
    "calculator": "Sorry, I cannot work that out without a calculator.",
    "weather": "Sorry, I cannot know the weather without a tool for it.",
    "clock": "Sorry, I cannot know the time without a clock.",
}

CONDITIONS = ["sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "stormy", "clear", "overcast", "hazy", "misty",
              "dry", "humid", "icy", "light rain", "partly cloudy", "heavy snow", "clear sky", "light wind"]
ERRORS = ["city not found", "unknown city", "timeout", "not found", "service unavailable", "invalid input",
          "no data", "bad request", "internal error", "too many requests", "rate limit", "connection refused"]

# Words to spell of `facts.py` that demo-pro needs whole, since tools say them all the time; it does not spell them.
WHOLE_WORDS = {"string", "weather"}

# Cities to ask for; the capitals of `facts.py` come on top.
CITIES = (
    ["New York", "Chicago", "Boston", "Seattle", "Denver", "Dallas", "Miami", "Toronto", "Montreal", "Vancouver",
     "Manchester", "Liverpool", "Glasgow", "Bristol", "Lyon", "Nice", "Marseille", "Toulouse", "Munich", "Hamburg",
     "Cologne", "Leipzig", "Milan", "Naples", "Turin", "Venice", "Barcelona", "Valencia", "Seville", "Porto", "Graz",
     "Zurich", "Geneva", "Basel", "Krakow", "Gdansk", "Bergen", "Malmo", "Tampere", "Aarhus", "Cork", "Antwerp",
     "Ghent", "Rotterdam", "Utrecht", "Kazan", "Istanbul", "Alexandria", "Lagos", "Accra", "Dakar", "Durban",
     "Cape Town", "Dubai", "Doha", "Mumbai", "Chennai", "Kolkata", "Karachi", "Dhaka", "Colombo", "Singapore",
     "Jakarta", "Manila", "Osaka", "Kyoto", "Sapporo", "Seoul", "Busan", "Shanghai", "Shenzhen", "Hong Kong",
     "Taipei", "Sydney", "Perth", "Brisbane", "Auckland", "Sao Paulo", "Recife", "Bogota", "Quito", "Caracas",
     "Cordoba", "Rosario", "Cusco", "Tijuana", "San Jose", "Quebec"],
    ["San Francisco", "Houston", "Phoenix", "Atlanta", "Leeds", "Bordeaux", "Stuttgart", "Florence", "Bilbao",
     "Salzburg", "Lausanne", "Poznan", "Gothenburg", "Odense", "Bruges", "Eindhoven", "Marrakesh", "Kigali",
     "Abu Dhabi", "Bangalore", "Hyderabad", "Kuala Lumpur", "Nagoya", "Fukuoka", "Guangzhou", "Melbourne",
     "Wellington", "Salvador", "Medellin", "Guadalajara"])
